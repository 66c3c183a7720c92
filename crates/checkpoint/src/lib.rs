//! Tensor files of the Hugging Face world, read strictly and written whole or not at all.
