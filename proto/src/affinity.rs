//! What a balancer learns.
