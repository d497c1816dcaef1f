// Package kuriv1 is Kuri's own gRPC API beside the CRI, on the same socket: what the CRI has no RPC for. Everything but
// this file is generated from kuri.proto (protoc with protoc-gen-go and protoc-gen-go-grpc).
package kuriv1
