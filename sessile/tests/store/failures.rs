//! What a store can do wrong: it costs full handshakes, never a connection, and is over by itself.
