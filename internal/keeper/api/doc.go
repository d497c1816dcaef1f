// Package api is the protocol between kurid and its keeper. Everything but this file is generated from the .proto files
// beside it (protoc with protoc-gen-go and protoc-gen-go-ttrpc), whose comments are the contract.
package api
