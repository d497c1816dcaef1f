package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// options are those of the command line.
type options struct {
	tools   string         // directory of the peers' programs, the CNI plugins and the sleeper
	bin     string         // directory of kurid and kuri-keeper
	dir     string         // directory for everything on the disk
	json    string         // file for the results; "" for none
	keep    string         // directory of results to which this one is added; "" for none
	against string         // directory of results with whose newest this one is compared; "" for none
	chart   string         // file for a chart; "" for none
	pods    int            // pods for each measure
	listed  int            // pods of the lists phase
	perPod  int            // containers in each of them
	rounds  int            // turns that the measures are divided into
	only    []string       // runtimes to measure
	phases  []string       // phases to run
	images  *regexp.Regexp // images to pull in the pull phase, by the names of their rows
	caches  bool           // do not drop the machine's caches
	verbose bool           // daemons log to stderr
}

// phases in the order in which they run. Each adds its measures to the report.
var phases = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"start", (*bench).startPhase},
	{"pods", (*bench).podsPhase},
	{"busy", (*bench).busyPhase},
	{"mounts", (*bench).mountsPhase},
	{"execs", (*bench).execsPhase},
	{"streams", (*bench).streamsPhase},
	{"burst", (*bench).burstPhase},
	{"network", (*bench).networkPhase},
	{"memory", (*bench).memoryPhase},
	{"lists", (*bench).listsPhase},
	{"pull", (*bench).pullPhase},
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == proxyMode {
		fmt.Fprintln(os.Stderr, "bench: the proxy:", serveProxy(os.Args[2]))
		os.Exit(1)
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err == nil {
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string) (*options, error) {
	o := &options{dir: os.Getenv("CELL_DIR")}
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.tools, "tools", "", "directory of containerd, runc, the CNI plugins and the sleeper")
	fs.StringVar(&o.bin, "bin", "", "directory of kurid and kuri-keeper")
	fs.StringVar(&o.json, "json", "", "write the results to this file as JSON")
	fs.StringVar(&o.keep, "keep", "", "add the results to this directory")
	fs.StringVar(&o.against, "against", "",
		"compare with the newest results in this directory, and fail when a ratio is a third worse")
	fs.StringVar(&o.chart, "chart", "", "draw the results into this SVG file")
	fs.IntVar(&o.pods, "pods", 50, "pods for each measure")
	fs.IntVar(&o.listed, "listed", 300, "pods that there are while lists, stats and metrics are asked for")
	fs.IntVar(&o.perPod, "per-pod", 1, "containers that each of these pods has: one runs, the others have ended")
	fs.IntVar(&o.rounds, "rounds", 5, "turns that the runtimes take")
	fs.BoolVar(&o.caches, "keep-caches", false, "do not drop the machine's page cache before a pull")
	fs.BoolVar(&o.verbose, "v", false, "show what the daemons log")
	only := fs.String("only", "containerd,kuri", "runtimes to measure")
	var names []string
	for _, p := range phases {
		names = append(names, p.name)
	}
	pulled := fs.String("images", "", "pull only images whose row fits this regular expression")
	chosen := fs.String("phases", strings.Join(names, ","), "phases to run")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if o.images, err = regexp.Compile(*pulled); err != nil {
		return nil, fmt.Errorf("-images: %w", err)
	}
	o.only, o.phases = strings.Split(*only, ","), strings.Split(*chosen, ",")
	for _, p := range o.phases {
		if !slices.Contains(names, p) {
			return nil, fmt.Errorf("-phases: %q is not one of %s", p, strings.Join(names, ", "))
		}
	}
	if o.dir == "" {
		return nil, errors.New("CELL_DIR is not set: start this through bench/run")
	}
	if o.rounds < 1 || o.pods < o.rounds {
		return nil, fmt.Errorf("-pods %d -rounds %d: each round needs a pod", o.pods, o.rounds)
	}
	if o.listed < 1 || o.perPod < 1 {
		return nil, fmt.Errorf("-listed %d -per-pod %d: there must be something to list", o.listed, o.perPod)
	}
	return o, nil
}

// bench is one run: the runtimes and the measurements so far.
type bench struct {
	*options
	images   *images
	runtimes []*daemon
	report   *report
}

func run(ctx context.Context, o *options) error {
	// 1. Enter a cgroup of our own: the rest of the cell's usage belongs to the runtimes.
	if err := enterCgroup("/bench"); err != nil {
		return err
	}
	// 2. The registry with the images.
	images, err := serveImages(filepath.Join(o.tools, "sleeper"), slices.Contains(o.phases, "pull"))
	if err != nil {
		return err
	}
	defer images.close()
	// 3. The runtimes, which are not started yet.
	b := &bench{options: o, images: images, report: newReport(o)}
	for _, name := range o.only {
		d, err := newDaemon(name, o, images)
		if err != nil {
			return err
		}
		defer d.end()
		b.runtimes = append(b.runtimes, d)
	}
	// 4. The phases.
	for _, p := range phases {
		if !slices.Contains(o.phases, p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", p.name)
		if err := p.run(b, ctx); err != nil {
			for _, d := range b.runtimes {
				err = errors.Join(err, d.died())
			}
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	// 5. The results.
	b.report.print(os.Stdout)
	return b.outcome()
}

// outcome writes the results as the command line requests.
func (b *bench) outcome() error {
	if b.json != "" {
		if err := b.report.write(b.json); err != nil {
			return err
		}
	}
	if b.chart != "" {
		if err := b.report.chart(b.chart); err != nil {
			return err
		}
	}
	if b.against != "" {
		last, err := lastKept(b.against)
		if err != nil {
			return err
		}
		fmt.Println("\nratios, and those of", last.Time.Format("2006-01-02"))
		if err := b.report.compare(last, os.Stdout); err != nil {
			return err
		}
	}
	if b.keep != "" {
		return b.report.keep(b.keep)
	}
	return nil
}
