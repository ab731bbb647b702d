//! Formats against validators that nobody here wrote, sinks against real receivers.

mod support;
mod validators;
