//! Conversions of element types that report what does not fit.

use burn::tensor::{DType, TensorData, bf16, f16};

use crate::error::KernelError;

/// Tensor data in another float type, rounded to nearest even.
///
/// `TensorData::convert_dtype` turns finite values beyond the largest f16 (65504) into infinities; this does not.
/// Infinities and NaNs of the input are kept.
///
/// # Errors
/// [`KernelError::Overflow`] names the first finite element that would become infinite.
///
/// ```
/// use burn::tensor::{DType, TensorData};
/// use lowrank_kernels::convert_checked;
/// let data = TensorData::new(vec![1.0_f32, 70_000.0], [2]);
/// assert!(convert_checked(data.clone(), DType::BF16).is_ok());
/// let error = convert_checked(data, DType::F16).unwrap_err();
/// assert_eq!(error.to_string(), "element 1 is 70000, which overflows f16 (at most 65504)");
/// ```
pub fn convert_checked(data: TensorData, dtype: DType) -> Result<TensorData, KernelError> {
    let largest = match dtype {
        _ if data.dtype == dtype => return Ok(data),
        DType::F16 => f16::MAX.to_f64(),
        DType::BF16 => bf16::MAX.to_f64(),
        DType::F32 | DType::Flex32 => f64::from(f32::MAX),
        _ => f64::INFINITY,
    };
    // Values up to half a unit in the last place above the largest one round down to it: the result decides.
    let overflow = |data: &TensorData, converted: &TensorData| {
        let pairs = data.iter::<f64>().zip(converted.iter::<f64>()).enumerate();
        pairs.into_iter().find(|(_, (from, to))| from.is_finite() && to.is_infinite())
    };
    if data.iter::<f64>().all(|x| !x.is_finite() || x.abs() <= largest) {
        return Ok(data.convert_dtype(dtype));
    }
    let converted = data.clone().convert_dtype(dtype);
    match overflow(&data, &converted) {
        Some((index, (value, _))) => {
            Err(KernelError::Overflow { index, value, dtype: dtype.name(), largest })
        }
        None => Ok(converted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn convert(values: &[f32], dtype: DType) -> Result<Vec<f32>, String> {
        let data = TensorData::new(values.to_vec(), [values.len()]);
        let converted = convert_checked(data, dtype).map_err(|error| error.to_string())?;
        assert_eq!(converted.dtype, dtype);
        Ok(converted.iter::<f32>().collect())
    }

    #[test]
    fn only_finite_values_that_would_become_infinite_are_refused() {
        // 65519.99 rounds down to the largest f16, 65520 is the tie that rounds up.
        assert_eq!(convert(&[65_519.99, -65_504.0], DType::F16).unwrap(), [65_504.0, -65_504.0]);
        let error = convert(&[0.0, -65_520.0], DType::F16).unwrap_err();
        assert!(error.starts_with("element 1 is -65520,"), "{error}");
        assert!(convert(&[f32::MAX], DType::BF16).is_err());
        let kept = convert(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e-30], DType::F16).unwrap();
        assert!(
            kept[0] == f32::INFINITY && kept[1] == f32::NEG_INFINITY && kept[2].is_nan() && kept[3] == 0.0
        );
        assert_eq!(convert(&[f32::MAX], DType::F64).unwrap(), [f32::MAX]);
    }
}
