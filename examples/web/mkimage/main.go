// Command mkimage compiles the example web server (static, no cgo) and writes it as an image archive that `kuri load`
// takes, in the format of `docker save`. It needs the Go compiler and no network.
//
//	go run ./examples/web/mkimage OUTPUT.tar
package main

import (
	"fmt"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/kuri-cri/kuri/test/image"
)

const reference = "localhost/kuri-web:1"

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: mkimage OUTPUT.tar")
		os.Exit(2)
	}
	if err := write(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
	fmt.Printf("%s holds the image %s\n", os.Args[1], reference)
}

func write(output string) error {
	img, err := image.Web()
	if err != nil {
		return err
	}
	ref, err := name.NewTag(reference)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(output, ref, img)
}
