package server

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/procfs"

	"github.com/kuri-cri/kuri/internal/holder"
	"github.com/kuri-cri/kuri/internal/keeper"
)

// Limits of a scrape's requests to the keeper.
const (
	keeperLimit = 2 * time.Second  // for each answer
	heldAge     = 15 * time.Second // the least interval between two listings of its pods and containers
)

// processes collects the metrics of the keeper and the holder.
type processes struct {
	keeper *keeper.Client
	holder *holder.Client

	mu       sync.Mutex // guards the fields below; held over a scrape, whose requests have time limits
	holderIs int        // its pid when it was asked last
	replaced uint64     // holders
	held     time.Time  // time of the last listing
	pods     int
	inside   int
}

func collectProcesses(k *keeper.Client, h *holder.Client) collector {
	p := &processes{keeper: k, holder: h}
	return collector{
		[]*selfRow{&rowUp, &rowRestarts, &rowRSS, &rowPSS, &rowFDs, &rowCPU, &rowBegan, &rowHeldPods, &rowHeld,
			&rowKeeperMissed},
		p.read,
	}
}

func (p *processes) read(to sink) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 2*keeperLimit)
	defer cancel()

	pid := 0
	if err := p.keeper.Ready(ctx, keeperLimit); err == nil {
		if info, err := p.keeper.Info(ctx); err == nil {
			pid = int(info.Pid)
		}
	}
	replaced, lost := p.keeper.Losses()
	to.value(&rowRestarts, float64(replaced), "keeper")
	to.value(&rowKeeperMissed, float64(lost))
	readProcess(to, "keeper", pid)
	if pid != 0 {
		p.readHeld(ctx, to)
	}

	info, _ := p.holder.Info()
	if info.Pid != 0 && p.holderIs != 0 && info.Pid != p.holderIs {
		p.replaced++
	}
	if info.Pid != 0 {
		p.holderIs = info.Pid
	}
	to.value(&rowRestarts, float64(p.replaced), "holder")
	readProcess(to, "holder", info.Pid)
}

// readHeld collects the numbers of the keeper's pods and containers. The list may be long, so it is
// not read at each scrape.
func (p *processes) readHeld(ctx context.Context, to sink) {
	if time.Since(p.held) > heldAge {
		list, err := p.keeper.List(ctx)
		if err != nil {
			return
		}
		p.held, p.pods, p.inside = time.Now(), len(list.Sandboxes), len(list.Containers)
	}
	to.value(&rowHeldPods, float64(p.pods))
	to.value(&rowHeld, float64(p.inside))
}

// readProcess collects the resources of a process; with pid 0, that it is not up. Values that
// cannot be read are left out.
func readProcess(to sink, name string, pid int) {
	if pid == 0 {
		to.value(&rowUp, 0, name)
		return
	}
	to.value(&rowUp, 1, name)
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return
	}
	if stat, err := proc.Stat(); err == nil {
		to.value(&rowRSS, float64(stat.ResidentMemory()), name)
		to.value(&rowCPU, stat.CPUTime(), name)
		if began, err := stat.StartTime(); err == nil {
			to.value(&rowBegan, began, name)
		}
	}
	if n, err := proc.FileDescriptorsLen(); err == nil {
		to.value(&rowFDs, float64(n), name)
	}
	if maps, err := proc.ProcSMapsRollup(); err == nil {
		to.value(&rowPSS, float64(maps.Pss), name)
	}
}
