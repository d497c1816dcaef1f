// Command curl stands in for the program of that name in the images of the conformance suite: it fetches one URL and
// prints what comes.
package main

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

func main() {
	for _, unused := range []string{"g", "q", "s", "S", "L"} {
		flag.Bool(unused, false, "taken for curl's sake")
	}
	insecure := flag.Bool("k", false, "take any certificate")
	whole := flag.Float64("max-time", 60, "seconds for all")
	connect := flag.Float64("connect-timeout", 30, "seconds for the connection")
	flag.Parse()
	if err := fetch(flag.Arg(0), *insecure, seconds(*whole), seconds(*connect)); err != nil {
		fmt.Fprintln(os.Stderr, "curl:", err)
		os.Exit(7)
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func fetch(url string, insecure bool, whole, connect time.Duration) error {
	if url == "" {
		return errors.New("no URL")
	}
	client := http.Client{Timeout: whole, Transport: &http.Transport{
		DialContext:     (&net.Dialer{Timeout: connect}).DialContext,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: insecure},
	}}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return err
}
