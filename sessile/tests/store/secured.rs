//! A Redis behind TLS and access rules.
