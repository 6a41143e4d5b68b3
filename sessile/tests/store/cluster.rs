//! A Redis Cluster of three nodes, and a master that sentinels watch over.
