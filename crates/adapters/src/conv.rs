//! Stand-alone LoRA for convolutions: the update of a kernel is a convolution to `rank` channels followed by
//! one of size 1.

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::module::{conv1d, conv2d};
use burn::tensor::ops::ConvOptions;

use crate::config::scale;
use crate::error::{AdapterError, Result};
use crate::init::uniform_values;

macro_rules! lora_conv {
    ($name:ident, $dims:literal, $weight:literal, $conv:ident, $shape:literal, $ones:expr) => {
        /// A pair for one convolution (as in loralib and PEFT): `A` has the kernel's size, stride, padding
        /// and dilation, `B` is of size 1.
        #[derive(Module, Debug)]
        pub struct $name<B: Backend> {
            #[doc = concat!("Shape `[rank, channels_in, ", $shape, "]`.")]
            pub a: Param<Tensor<B, $weight>>,
            /// Shape `[channels_out, rank, 1, …]`.
            pub b: Param<Tensor<B, $weight>>,
            /// Factor on the update.
            pub scale: f64,
            stride: [usize; $dims],
            padding: [usize; $dims],
            dilation: [usize; $dims],
        }

        impl<B: Backend> $name<B> {
            /// A newly initialized pair for a convolution of these options without groups: `A` Kaiming-uniform, `B` zero.
            ///
            /// # Errors
            /// [`AdapterError::BadValue`] for a rank of 0, an alpha that is not positive, or groups.
            pub fn init(
                channels: [usize; 2],
                kernel: [usize; $dims],
                options: &ConvOptions<$dims>,
                (rank, alpha): (usize, f64),
                seed: u64,
                device: &B::Device,
            ) -> Result<Self> {
                let bad = |name, value: String, expected| AdapterError::BadValue { name, value, expected };
                if rank == 0 {
                    return Err(bad("rank", rank.to_string(), "1 or more"));
                }
                if !(alpha.is_finite() && alpha > 0.0) {
                    return Err(bad("alpha", alpha.to_string(), "a finite number above 0"));
                }
                if options.groups != 1 {
                    return Err(bad("groups", options.groups.to_string(), "1"));
                }
                let [channels_in, channels_out] = channels;
                let mut a_shape = [rank; $weight];
                a_shape[1] = channels_in;
                a_shape[2..].copy_from_slice(&kernel);
                let mut b_shape = [1; $weight];
                (b_shape[0], b_shape[1]) = (channels_out, rank);
                let fan_in = channels_in * kernel.iter().product::<usize>();
                let bound = 1.0 / (fan_in as f64).sqrt();
                let values = uniform_values(seed, "conv.lora_A", rank * fan_in, bound);
                let a = Tensor::<B, 1>::from_floats(values.as_slice(), device).reshape(a_shape);
                Ok(Self {
                    a: Param::from_tensor(a),
                    b: Param::from_tensor(Tensor::zeros(b_shape, device)),
                    scale: scale(alpha, rank, false),
                    stride: options.stride,
                    padding: options.padding,
                    dilation: options.dilation,
                })
            }

            /// The pair of these factors, as PEFT stores them.
            ///
            /// # Errors
            /// [`AdapterError::BadValue`] for factors of different ranks, a `B` of another size than 1, or groups.
            pub fn from_factors(
                a: Tensor<B, $weight>,
                b: Tensor<B, $weight>,
                options: &ConvOptions<$dims>,
                scale: f64,
            ) -> Result<Self> {
                let bad = |name, value: String, expected| AdapterError::BadValue { name, value, expected };
                let (rank, shape) = (a.dims()[0], b.dims());
                if shape[1] != rank || shape[2..].iter().any(|&size| size != 1) {
                    return Err(bad(
                        "shape of B",
                        format!("{shape:?}"),
                        "outputs, the rank of A, and sizes of 1",
                    ));
                }
                if options.groups != 1 {
                    return Err(bad("groups", options.groups.to_string(), "1"));
                }
                Ok(Self {
                    a: Param::from_tensor(a),
                    b: Param::from_tensor(b),
                    scale,
                    stride: options.stride,
                    padding: options.padding,
                    dilation: options.dilation,
                })
            }

            /// The update of the convolution's output, on the factors; to be added to it.
            ///
            /// # Shapes
            /// - `x`: `[batch, channels_in, …]`
            /// - output: `[batch, channels_out, …]`
            pub fn forward(&self, x: Tensor<B, $weight>) -> Tensor<B, $weight> {
                let options = ConvOptions::new(self.stride, self.padding, self.dilation, 1);
                let inner = $conv(x, self.a.val(), None, options);
                let ones = ConvOptions::new($ones, [0; $dims], $ones, 1);
                $conv(inner, self.b.val(), None, ones) * self.scale
            }

            /// The update of the kernel, in its shape `[channels_out, channels_in, …]`; for merging.
            pub fn delta_weight(&self) -> Tensor<B, $weight> {
                let mut shape = self.a.dims();
                let rank = shape[0];
                let inner = shape[1..].iter().product::<usize>();
                shape[0] = self.b.dims()[0];
                let product =
                    self.b.val().reshape([shape[0], rank]).matmul(self.a.val().reshape([rank, inner]));
                product.reshape(shape) * self.scale
            }
        }
    };
}

lora_conv!(LoraConv1d, 1, 3, conv1d, "kernel", [1]);
lora_conv!(LoraConv2d, 2, 4, conv2d, "kernel_height, kernel_width", [1, 1]);

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::init::normal;
    use crate::peft::host_values;

    fn close<const D: usize>(a: Tensor<Flex, D>, b: Tensor<Flex, D>) {
        let size = host_values(b.clone()).iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let off = host_values(a - b).iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(size > 0.1 && off < 100.0 * f32::EPSILON * size, "{off} of {size}");
    }

    #[test]
    fn merged_equals_factored_in_two_dimensions() {
        let device = Default::default();
        let options = ConvOptions::new([2, 1], [1, 2], [1, 2], 1);
        let mut lora = LoraConv2d::<Flex>::init([3, 5], [3, 2], &options, (2, 7.0), 0, &device).unwrap();
        let x = normal(1, "x", [2, 3, 9, 8], 1.0, &device);
        assert!(host_values(lora.forward(x.clone())).iter().all(|v| *v == 0.0));
        lora.b = Param::from_tensor(normal(1, "b", [5, 2, 1, 1], 1.0, &device));
        let weight: Tensor<Flex, 4> = normal(1, "w", [5, 3, 3, 2], 1.0, &device);
        let base = conv2d(x.clone(), weight.clone(), None, options.clone());
        close(conv2d(x.clone(), weight + lora.delta_weight(), None, options), base + lora.forward(x));
    }

    #[test]
    fn merged_equals_factored_in_one_dimension() {
        let device = Default::default();
        let options = ConvOptions::new([2], [1], [1], 1);
        let mut lora = LoraConv1d::<Flex>::init([4, 3], [3], &options, (2, 1.0), 0, &device).unwrap();
        lora.b = Param::from_tensor(normal(1, "b", [3, 2, 1], 1.0, &device));
        let x = normal(1, "x", [2, 4, 10], 1.0, &device);
        close(conv1d(x.clone(), lora.delta_weight(), None, options), lora.forward(x));
    }

    #[test]
    fn groups_and_ranks_of_zero_are_refused() {
        let device = Default::default();
        let options = ConvOptions::new([1], [0], [1], 2);
        assert!(LoraConv1d::<Flex>::init([4, 4], [3], &options, (2, 1.0), 0, &device).is_err());
        let options = ConvOptions::new([1], [0], [1], 1);
        assert!(LoraConv1d::<Flex>::init([4, 4], [3], &options, (0, 1.0), 0, &device).is_err());
        let factors = |rank| [[2, 4, 3], [4, rank, 1]].map(|shape| Tensor::<Flex, 3>::zeros(shape, &device));
        let ([a, b], [c, d]) = (factors(2), factors(3));
        assert!(LoraConv1d::from_factors(a, b, &options, 1.0).is_ok());
        assert!(LoraConv1d::from_factors(c, d, &options, 1.0).is_err());
    }
}
