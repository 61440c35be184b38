//! The source and the documents as text: layers, and the rules of writing. No server is needed.

mod layers;
mod prose;
