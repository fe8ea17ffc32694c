//! Positional encodings on the GPU.
