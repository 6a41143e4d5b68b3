//! Helpers of the fuzz targets.

/// Cuts `data` into segments of 1 to 64 bytes.
///
/// A hash of `data` decides the lengths. Captured handshakes are therefore usable as seeds.
pub fn segments(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut state = data.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    std::iter::from_fn(move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let len = 1 + (state >> 58) as usize;
        let (segment, rest) = data.split_at(len.min(data.len()));
        data = rest;
        (!segment.is_empty()).then_some(segment)
    })
}
