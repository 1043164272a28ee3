//! To be written.
pub mod error;
pub mod pki;
pub use error::LinkError;
