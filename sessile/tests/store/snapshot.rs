//! A drained server's sessions, found again at its next start.
