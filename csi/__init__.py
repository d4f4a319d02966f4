"""Control plane: the CSI services of the node plugin. Threads (gRPC); the only package that imports grpc."""
