// Command program replaces the programs of the images that critest uses. It acts according to the
// name under which it is started:
//
//	nginx         a web server on port 80, or $PORT, that is listed as "nginx: master process nginx -g daemon off;" and
//	              writes its pid to /var/run/nginx.pid
//	httpd         a web server on port 80 that complains about its name on standard error, like Apache's
//	nonewprivs    prints "Effective uid: N"
//	pause         waits for SIGTERM
package main

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// title is the text that critest expects in nginx's command line.
const title = "nginx: master process nginx -g daemon off;"

func main() {
	var err error
	switch name := filepath.Base(os.Args[0]); {
	case name == "nginx":
		// Only execve changes the command line that other processes read. The process keeps the
		// name of the file.
		err = syscall.Exec("/usr/sbin/nginx", []string{title}, os.Environ())
	case strings.HasPrefix(os.Args[0], "nginx: "):
		if err = os.WriteFile("/var/run/nginx.pid", fmt.Appendln(nil, os.Getpid()), 0o644); err == nil {
			err = serve(os.Getenv("PORT"))
		}
	case name == "httpd":
		fmt.Fprintln(os.Stderr, "AH00558: httpd: no server name is set, the address of this pod is taken")
		fmt.Fprintln(os.Stderr, "AH00094: Command line: 'httpd'")
		err = serve("")
	case name == "nonewprivs":
		fmt.Println("Effective uid:", os.Geteuid())
	case name == "pause":
		waitForEnd()
	default:
		err = fmt.Errorf("no program is called %q", name)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// serve answers every request with 200 and logs a line for each, until SIGTERM or SIGQUIT.
func serve(port string) error {
	if port == "" {
		port = "80"
	}
	go func() {
		waitForEnd()
		os.Exit(0)
	}()
	return http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Printf("%s \"%s %s\" 200\n", r.RemoteAddr, r.Method, r.URL)
		fmt.Fprintln(w, "<!DOCTYPE html><title>Welcome</title><h1>It works!</h1>")
	}))
}

func waitForEnd() {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM, syscall.SIGQUIT, os.Interrupt)
	<-ended
}
