//! Views of raw bytes as little-endian numbers, whatever their alignment.
//!
//! Data of a mapped file starts wherever the file says, so a plain cast can fail: these borrow
//! where the address allows it and copy where it does not.

use std::borrow::Cow;

use half::{bf16, f16};

// File formats are little-endian and are viewed in place.
const _: () = assert!(cfg!(target_endian = "little"), "only little-endian machines are supported");

/// `data` as f32. A rest shorter than one element is left out.
pub fn as_f32(data: &[u8]) -> Cow<'_, [f32]> {
    view(data)
}

/// `data` as f16. A rest shorter than one element is left out.
pub fn as_f16(data: &[u8]) -> Cow<'_, [f16]> {
    view(data)
}

/// `data` as bf16. A rest shorter than one element is left out.
pub fn as_bf16(data: &[u8]) -> Cow<'_, [bf16]> {
    view(data)
}

fn view<T: bytemuck::Pod>(data: &[u8]) -> Cow<'_, [T]> {
    let whole = &data[..data.len() - data.len() % size_of::<T>()];
    match bytemuck::try_cast_slice(whole) {
        Ok(elements) => Cow::Borrowed(elements),
        Err(_) => {
            let mut elements = vec![T::zeroed(); whole.len() / size_of::<T>()];
            bytemuck::cast_slice_mut(&mut elements).copy_from_slice(whole);
            Cow::Owned(elements)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unaligned_and_ragged_bytes_are_read() {
        let values = [1.5f32, -2.0, 3.25];
        let mut bytes = vec![0u8; 1];
        values.iter().for_each(|v| bytes.extend(v.to_le_bytes()));
        bytes.push(7);
        for start in 0..4 {
            let mut shifted = vec![0u8; start];
            shifted.extend(&bytes[1..]);
            assert_eq!(*as_f32(&shifted[start..]), values);
        }
        assert_eq!(*as_bf16(&[0x80, 0x3f, 0xff]), [bf16::ONE]);
        assert_eq!(*as_f16(&[0x00, 0x3c]), [f16::ONE]);
        assert!(as_f32(&[]).is_empty());
    }
}
