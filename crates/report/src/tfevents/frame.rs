//! TFRecord framing: length, its checksum, data, its checksum; all little-endian.
//!
//! `u64 length | u32 masked_crc32c(length) | data | u32 masked_crc32c(data)`

/// Bytes before the data of a record.
pub(crate) const HEADER: usize = 12;
/// Bytes after the data of a record.
pub(crate) const FOOTER: usize = 4;

/// TFRecord's checksum: a rotated and shifted CRC32C, so that a checksum of data that holds checksums
/// stays meaningful.
pub(crate) fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Appends one record.
pub(crate) fn put_record(out: &mut Vec<u8>, data: &[u8]) {
    let length = (data.len() as u64).to_le_bytes();
    out.reserve(HEADER + data.len() + FOOTER);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc32c(&length).to_le_bytes());
    out.extend_from_slice(data);
    out.extend_from_slice(&masked_crc32c(data).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_is_the_castagnoli_one_masked() {
        // CRC32C("123456789") = 0xe3069283 is the check value of the CRC catalogue.
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        let expect = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc32c(b"123456789"), expect);
    }

    #[test]
    fn version_record_is_the_one_tensorflow_writes() {
        // First bytes of any event file whose version event has this length: 0x18 and its checksum.
        let mut out = Vec::new();
        put_record(&mut out, &[0; 0x18]);
        assert_eq!(out[..HEADER], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
    }
}
