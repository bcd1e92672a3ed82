//! The running checksum of SQLite's WAL: two 32-bit sums over pairs of words, in the byte order the file header names.

/// The running checksum. Feeding is incremental; every piece must be a multiple of 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksummer {
    big_endian: bool,
    sums: [u32; 2],
}

impl Checksummer {
    /// Goes on from `sums`; a new file starts from `[0, 0]`. `big_endian` is the byte order of the words it reads.
    pub const fn new(big_endian: bool, sums: [u32; 2]) -> Checksummer {
        Checksummer { big_endian, sums }
    }

    /// Adds bytes; panics when their number is no multiple of 8 (headers and pages always are).
    pub fn update(&mut self, bytes: &[u8]) {
        self.sums = if self.big_endian {
            sum(self.sums, bytes, u32::from_be_bytes)
        } else {
            sum(self.sums, bytes, u32::from_le_bytes)
        };
    }

    /// The checksum so far.
    pub const fn sums(self) -> [u32; 2] {
        self.sums
    }

    /// Byte order of the words.
    pub const fn big_endian(self) -> bool {
        self.big_endian
    }
}

/// Bytes that are summed by themselves before they meet what came before.
const BLOCK: usize = 64;
/// What eight steps with words of 0 make of the two sums: (1, 1; 1, 2) to the 8th power, Fibonacci's numbers.
const PASSED: [u32; 3] = [610, 987, 1597];

/// A step (eight bytes) must wait for the one before it, and that is all that limits it. The sums are linear, so each block
/// is summed from 0, blocks side by side, and only joining them is done one after the other: three times as fast.
#[inline(always)]
fn sum(mut sums: [u32; 2], bytes: &[u8], word: impl Fn([u8; 4]) -> u32 + Copy) -> [u32; 2] {
    let (blocks, rest) = bytes.as_chunks::<BLOCK>();
    for block in blocks {
        let [a, b] = sums;
        let [c, d] = steps([0, 0], block.as_chunks().0, word);
        let [aa, ab, bb] = PASSED;
        sums = [
            a.wrapping_mul(aa).wrapping_add(b.wrapping_mul(ab)).wrapping_add(c),
            a.wrapping_mul(ab).wrapping_add(b.wrapping_mul(bb)).wrapping_add(d),
        ];
    }
    let (pairs, rest) = rest.as_chunks();
    assert!(rest.is_empty(), "BUG: the wal checksum takes multiples of 8 bytes, not {}", bytes.len());
    steps(sums, pairs, word)
}

/// The definition; `word` is inlined to a load or a load and a swap.
#[inline(always)]
fn steps([mut a, mut b]: [u32; 2], pairs: &[[u8; 8]], word: impl Fn([u8; 4]) -> u32) -> [u32; 2] {
    for &[p, q, r, s, t, u, v, w] in pairs {
        a = a.wrapping_add(word([p, q, r, s])).wrapping_add(b);
        b = b.wrapping_add(word([t, u, v, w])).wrapping_add(a);
    }
    [a, b]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn both_orders_follow_the_definition() {
        let bytes = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4];
        let mut big = Checksummer::new(true, [10, 20]);
        big.update(&bytes);
        // 10+1+20=31, 20+2+31=53, 31+3+53=87, 53+4+87=144
        assert_eq!(big.sums(), [87, 144]);
        let mut swapped = bytes;
        swapped.chunks_mut(4).for_each(<[u8]>::reverse);
        let mut little = Checksummer::new(false, [10, 20]);
        little.update(&swapped[..8]);
        little.update(&swapped[8..]);
        assert_eq!(little.sums(), big.sums());
    }

    proptest! {
        #[test]
        fn blocks_give_what_single_steps_give(
            big_endian in any::<bool>(),
            sums in any::<[u32; 2]>(),
            pairs in prop::collection::vec(any::<[u8; 8]>(), 0..80),
            cut in any::<prop::sample::Index>(),
        ) {
            let word = if big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
            let defined = steps(sums, &pairs, word);
            let (before, after) = pairs.split_at(cut.index(pairs.len() + 1));
            let mut sum = Checksummer::new(big_endian, sums);
            sum.update(before.as_flattened());
            sum.update(after.as_flattened());
            prop_assert_eq!(sum.sums(), defined);
        }
    }
}
