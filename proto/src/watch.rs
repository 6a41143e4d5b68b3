//! What a server shows in clear.
