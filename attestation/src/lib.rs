//! Evidence in, verdict out.
