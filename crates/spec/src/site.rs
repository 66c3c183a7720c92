//! Sites of adapters: the linear maps and embeddings of a model.

/// One linear map (or embedding) of a model that can carry an adapter.
///
/// Row-vector convention: `y = x·W + b` with `W` of shape `[d_input, d_output]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Site {
    /// Hugging Face module path, e.g. `bert.encoder.layer.0.attention.self.query`.
    pub path: String,
    /// Index of the transformer layer, `None` outside the layers (pooler, classifier).
    pub layer: Option<usize>,
    /// Width of the input.
    pub d_input: usize,
    /// Width of the output.
    pub d_output: usize,
    /// Whether the map belongs to the task head, which `all-linear` leaves out.
    pub head: bool,
    /// Whether it is an embedding: `d_input` rows selected by token ids, each of width `d_output`.
    pub embedding: bool,
    /// Channels, height and width of the kernel of a convolution whose stride is its kernel: a map of patches, whose
    /// `d_input` is their product.
    pub kernel: Option<[usize; 3]>,
    /// Whether files store its matrix as `(in, out)` (GPT-2's `Conv1D`).
    pub conv1d: bool,
}

/// The part of a path that the layers of a decoder have.
const DECODER: &str = "decoder";

impl Site {
    /// Largest rank that a factored update of this shape can have.
    pub fn max_rank(&self) -> usize {
        self.d_input.min(self.d_output)
    }

    /// Last segment of the path, the name that users know (`query`, `q_proj`).
    pub fn name(&self) -> &str {
        self.path.rsplit('.').next().unwrap_or(&self.path)
    }

    /// The path relative to its layer (`attention.self.query`): equal for the same map of every layer. The layers of a
    /// decoder keep that part of their path, which tells them from those of an encoder beside it.
    pub fn kind(&self) -> String {
        let Some(layer) = self.layer else { return self.path.clone() };
        match self.path.split_once(&format!(".{layer}.")) {
            Some((stack, rest)) if stack.split('.').any(|part| part == DECODER) => {
                format!("{DECODER}.{rest}")
            }
            Some((_, rest)) => rest.to_string(),
            None => self.path.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_is_the_path_below_the_layer() {
        let site = Site {
            path: "bert.encoder.layer.11.attention.self.query".into(),
            layer: Some(11),
            d_input: 4,
            d_output: 6,
            head: false,
            ..Site::default()
        };
        assert_eq!(site.kind(), "attention.self.query");
        let path = |stack: &str| format!("{stack}.block.11.layer.0.SelfAttention.q");
        let kind = |stack: &str| Site { path: path(stack), ..site.clone() }.kind();
        assert_eq!(kind("encoder"), "layer.0.SelfAttention.q");
        assert_eq!(kind("decoder"), "decoder.layer.0.SelfAttention.q");
        assert_eq!(site.name(), "query");
        assert_eq!(site.max_rank(), 4);
    }
}
