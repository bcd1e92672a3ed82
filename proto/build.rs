//! Compiles the `.proto` files with a pure-Rust compiler, so no machine needs `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=hub");
    let files = [
        "hub/v1/types.proto",
        "hub/v1/replication.proto",
        "hub/v1/restore.proto",
        "hub/v1/fleet.proto",
        "hub/v1/control.proto",
        "hub/v1/images.proto",
        "hub/v1/destinations.proto",
        "hub/v1/import.proto",
        "hub/v1/mirror.proto",
        "hub/v1/retention.proto",
        "hub/v1/jobs.proto",
        "hub/v1/drills.proto",
    ];
    let descriptors = protox::compile(files, ["."])?;
    // `bytes` fields become `Bytes`: a segment is sliced, never copied, on its way through the hub.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
