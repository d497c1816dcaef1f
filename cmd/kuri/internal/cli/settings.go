package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/kuri-cri/kuri/client"
)

const (
	defaultEndpoint = "unix:///run/kuri/kuri.sock"
	defaultTimeout  = 2 * time.Minute
	defaultFile     = "/etc/crictl.yaml"
)

// settings selects the runtime. Each setting comes from the first source that has it: the flag, the
// environment, the configuration file, the default. The names in the environment and in the file
// are crictl's.
type settings struct {
	Runtime string
	Image   string
	Timeout time.Duration // of one call
	File    string
}

func (c *CLI) Settings() (settings, error) {
	file, err := c.file()
	if err != nil {
		return settings{}, err
	}
	s := settings{
		Runtime: cmp.Or(c.flags.Runtime, c.Env("CONTAINER_RUNTIME_ENDPOINT"), file.Runtime, defaultEndpoint),
		Timeout: cmp.Or(c.flags.Timeout, file.Timeout, defaultTimeout),
	}
	s.Image = cmp.Or(c.flags.Image, c.Env("IMAGE_SERVICE_ENDPOINT"), file.Image, s.Runtime)
	if s.Timeout < 0 {
		return settings{}, Usagef("the timeout %s is negative", s.Timeout)
	}
	for _, endpoint := range []string{s.Runtime, s.Image} {
		if _, err := client.SocketPath(endpoint); err != nil {
			return settings{}, WrongUsage(err)
		}
	}
	return s, nil
}

// file reads the configuration file. It ignores keys that only concern crictl.
func (c *CLI) file() (settings, error) {
	named := cmp.Or(c.flags.File, c.Env("CRI_CONFIG_FILE"))
	path := cmp.Or(named, defaultFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) && named == "" {
		return settings{}, nil
	}
	if err != nil {
		return settings{}, fmt.Errorf("read the configuration: %w", err)
	}
	var keys struct {
		Runtime string `json:"runtime-endpoint"`
		Image   string `json:"image-endpoint"`
		Timeout any    `json:"timeout"` // seconds, or a duration
	}
	if err := yaml.Unmarshal(data, &keys); err != nil {
		return settings{}, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	s := settings{Runtime: keys.Runtime, Image: keys.Image}
	switch t := keys.Timeout.(type) {
	case nil:
	case float64:
		s.Timeout = Seconds(t)
	case string:
		if s.Timeout, err = time.ParseDuration(t); err != nil {
			seconds, err := strconv.Atoi(t)
			if err != nil {
				return settings{}, fmt.Errorf("read the configuration %s: timeout %q: expected seconds", path, t)
			}
			s.Timeout = Seconds(float64(seconds))
		}
	default:
		return settings{}, fmt.Errorf("read the configuration %s: timeout %v: expected seconds", path, t)
	}
	return s, nil
}

// Seconds returns n seconds as a duration, capped at the maximum of some 292 years.
func Seconds(n float64) time.Duration {
	if n >= math.MaxInt64/float64(time.Second) {
		return math.MaxInt64
	}
	return time.Duration(n * float64(time.Second))
}

// FreeShortFlags gives -i and -t of cmd the meaning that they have in all other programs: the
// root's flags with these letters have only their long names after the verb.
func (c *CLI) FreeShortFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.flags.Image, "image-endpoint", "", "`SOCKET` of the image service")
	cmd.Flags().DurationVar(&c.flags.Timeout, "timeout", 0, "how long a call to the runtime may take")
}
