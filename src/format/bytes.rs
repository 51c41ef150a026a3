//! Reading fixed little-endian records without a panic.

/// A cursor over bytes from outside; every read says `None` at the end.
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take(8)?.try_into().ok().map(u64::from_le_bytes)
    }

    pub fn id(&mut self) -> Option<[u8; 32]> {
        self.take(32)?.try_into().ok()
    }

    /// Whether nothing but zeros is left.
    pub fn only_zeros_left(&self) -> bool {
        self.0.iter().all(|b| *b == 0)
    }
}

/// A LEB128 number.
pub(super) fn put_varint(out: &mut Vec<u8>, mut n: u32) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

impl Reader<'_> {
    /// Reads what [`put_varint`] wrote: the shortest form and no other.
    pub fn varint(&mut self) -> Option<u32> {
        let mut n = 0u64;
        for shift in (0..35).step_by(7) {
            let b = self.u8()?;
            n |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return if b == 0 && shift > 0 { None } else { u32::try_from(n).ok() };
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for n in [0, 1, 127, 128, 300, u32::MAX] {
            let mut bytes = vec![];
            put_varint(&mut bytes, n);
            assert_eq!(Reader(&bytes).varint(), Some(n));
            let last = bytes.len() - 1;
            bytes[last] |= 0x80;
            bytes.push(0);
            assert_eq!(Reader(&bytes).varint(), None, "{n} with a zero at its end");
        }
        assert_eq!(Reader(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint(), None, "more than 32 bits");
    }
}
