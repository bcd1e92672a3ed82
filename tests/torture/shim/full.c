/* A disk that is full when told so, for one process (LD_PRELOAD): while the file $WALHUB_TORTURE_FULL exists, writes to
   files below $WALHUB_TORTURE_STATE are cut short, then refused with ENOSPC. Each refusal adds a byte to
   $WALHUB_TORTURE_FULL.refused. No privileges needed, and nobody else's disk is touched. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_uint turn;

static ssize_t real_write(int fd, const void *data, size_t n) {
    static ssize_t (*f)(int, const void *, size_t);
    if (!f) f = dlsym(RTLD_NEXT, "write");
    return f(fd, data, n);
}

static ssize_t real_pwrite(int fd, const void *data, size_t n, off_t at) {
    static ssize_t (*f)(int, const void *, size_t, off_t);
    if (!f) f = dlsym(RTLD_NEXT, "pwrite64");
    return f(fd, data, n, at);
}

/* How much of a write of n bytes this disk takes; -1: none, it is full. */
static ssize_t room(int fd, size_t n) {
    const char *full = getenv("WALHUB_TORTURE_FULL"), *state = getenv("WALHUB_TORTURE_STATE");
    char link[64], path[4096], refused[4096];
    if (!full || !state || access(full, F_OK) != 0) return n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return n;
    path[length] = 0;
    if (strncmp(path, state, strlen(state)) != 0) return n;
    if (n > 1 && atomic_fetch_add(&turn, 1) % 2 == 0) return n / 2;
    snprintf(refused, sizeof refused, "%s.refused", full);
    int out = open(refused, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (out >= 0) {
        real_write(out, "x", 1);
        close(out);
    }
    errno = ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *data, size_t n) {
    ssize_t some = room(fd, n);
    return some < 0 ? -1 : real_write(fd, data, some);
}

ssize_t pwrite64(int fd, const void *data, size_t n, off_t at) {
    ssize_t some = room(fd, n);
    return some < 0 ? -1 : real_pwrite(fd, data, some, at);
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return pwrite64(fd, data, n, at); }
