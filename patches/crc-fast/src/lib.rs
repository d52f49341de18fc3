//! Stands in for the crate of this name, whose tables for forty algorithms are 0.7 MB of a program.
//! object_store wants one algorithm of it, for a checksum beside that of the signature, which
//! nobody here asks for.

/// What object_store may ask for.
#[derive(Clone, Copy, Debug)]
pub enum CrcAlgorithm {
    /// CRC-64/NVME of the catalogue of parametrised CRC algorithms.
    Crc64Nvme,
}

/// Its polynomial, reflected.
const POLYNOMIAL: u64 = 0x9A6C_9329_AC4B_C9B5;

/// A checksum under way.
#[derive(Debug)]
pub struct Digest(u64);

impl Digest {
    /// Of nothing.
    pub fn new(CrcAlgorithm::Crc64Nvme: CrcAlgorithm) -> Self {
        Self(u64::MAX)
    }

    /// Takes more in.
    pub fn update(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 ^= u64::from(*byte);
            for _ in 0..8 {
                self.0 = self.0 >> 1 ^ if self.0 & 1 == 1 { POLYNOMIAL } else { 0 };
            }
        }
    }

    /// The checksum of all.
    pub fn finalize(&self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of the catalogue.
    #[test]
    fn it_is_the_algorithm_of_this_name() {
        let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
        digest.update(b"1234");
        digest.update(b"56789");
        assert_eq!(digest.finalize(), 0xAE8B_1486_0A79_9888);
    }
}
