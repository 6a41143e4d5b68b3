//! reg
