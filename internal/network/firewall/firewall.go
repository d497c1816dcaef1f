package firewall

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	nl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Config configures a firewall.
type Config struct {
	StateDir string        // directory of firewalld.json
	Comment  string        // of rules in tables of others, by which they are known as ours
	Names    []string      // that the bridge may have
	Open     bool          // put rules into others' chains that drop packets from the bridge
	Every    time.Duration // how long a look is good for; 0: 30 s
}

// Bridge is the bridge whose packets must pass.
type Bridge struct {
	Name   string
	Index  int
	Ranges []netip.Prefix
}

// has reports whether the bridge has a range of IPv4, or of IPv6.
func (on Bridge) has(v4 bool) bool {
	return slices.ContainsFunc(on.Ranges, func(r netip.Prefix) bool { return r.Addr().Is4() == v4 })
}

// Firewall is the part of the node's own firewall that concerns the bridge. Each table of the kernel
// decides on a packet by itself, and a drop is final. So no rule in a table of ours can override
// another table, which must accept the bridge itself. Firewall asks firewalld to do so over D-Bus (see
// trust). It adds rules to other tables if the configuration allows it (see open); otherwise the
// notice has the commands for the operator. It is safe for concurrent use.
type Firewall struct {
	Config
	unseen atomic.Bool               // the bridge is newer than the last Look
	busy   atomic.Bool               // a Look is running
	seenAt atomic.Pointer[time.Time] // of the last Look; nil: none
	notice atomic.Pointer[string]    // for the operator; nil: nothing
}

const (
	lookEvery = 30 * time.Second // between two looks, while there are pods and status requests
	dbusLimit = 5 * time.Second  // for firewalld's answers
)

func New(config Config) *Firewall {
	if config.Every == 0 {
		config.Every = lookEvery
	}
	return &Firewall{Config: config}
}

// Notice returns a warning for the operator, "" for none.
func (f *Firewall) Notice() string {
	if text := f.notice.Load(); text != nil {
		return *text
	}
	return ""
}

// Stale reports whether it is time to look again.
func (f *Firewall) Stale() bool {
	at := f.seenAt.Load()
	return at == nil || time.Since(*at) > f.Every
}

// Expect says that the bridge was made, so that the next LookOnce looks.
func (f *Firewall) Expect() { f.unseen.Store(true) }

// Forget says that the bridge is gone, and the notice with it.
func (f *Firewall) Forget() {
	f.unseen.Store(false)
	f.notice.Store(nil)
}

// LookOnce is Look, once after each Expect.
func (f *Firewall) LookOnce(ctx context.Context, on Bridge) {
	if f.unseen.CompareAndSwap(true, false) {
		f.Look(ctx, on)
	}
}

// Look finds the chains that keep pods from what is beyond the node, and has them opened where that is possible.
func (f *Firewall) Look(ctx context.Context, on Bridge) {
	if !f.busy.CompareAndSwap(false, true) {
		return
	}
	defer f.busy.Store(false)
	f.seenAt.Store(new(time.Now()))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), dbusLimit)
	defer cancel()
	found, err := barriers(on)
	for _, open := range []func([]barrier) (bool, error){
		func([]barrier) (bool, error) { return f.trust(ctx, on.Name) },
		func(found []barrier) (bool, error) { return f.open(ctx, found, on.Name) },
	} {
		if err != nil || len(found) == 0 {
			break
		}
		var opened bool
		if opened, err = open(found); opened {
			var again error
			found, again = barriers(on)
			err = errors.Join(err, again)
		}
	}
	if err != nil {
		slog.Warn("the node's firewall cannot be looked at; if pods do not reach what is beyond the node, see docs/network.md", "err", err)
	}
	text := tell(found, on.Name)
	if text != "" && text != f.Notice() {
		slog.Warn(text)
	}
	f.notice.Store(&text)
}

// TakeBack reverts the changes that Look, of this or an earlier process, made to tables of others.
func (f *Firewall) TakeBack(ctx context.Context) error {
	return errors.Join(f.distrust(ctx), f.closeAgain(ctx))
}

// tell returns the notice for the chains.
func tell(found []barrier, bridge string) string {
	if len(found) == 0 {
		return ""
	}
	var all []string
	for _, f := range found {
		all = append(all, fmt.Sprintf("in %s with `%s`", f.where, f.mend))
	}
	return fmt.Sprintf("the node's firewall drops what pods of the built-in network send beyond the node; let it accept the bridge %s: %s", bridge, strings.Join(all, ", "))
}

// barrier is a chain of the node's firewall that drops what pods send beyond the node.
type barrier struct {
	where   string          // as its tool calls it
	mend    string          // a shell command that makes it accept the bridge
	chain   *nftables.Chain // of nftables, but for firewalld's
	program string          // of iptables-legacy
}

// barriers lists the barriers in nftables, which include those of iptables-nft and firewalld, and those
// in iptables-legacy, which are not visible in nftables.
func barriers(on Bridge) ([]barrier, error) {
	found, err := nftBarriers(on)
	if err != nil {
		return nil, err
	}
	for _, l := range []legacy{legacy4, legacy6} {
		if !on.has(l == legacy4) {
			continue
		}
		drops, err := l.dropsFrom(on.Name)
		if err != nil {
			return nil, err
		}
		if drops {
			found = append(found, barrier{where: "chain FORWARD of " + l.program, mend: acceptBridge(l.program, on.Name),
				program: l.program})
		}
	}
	slices.SortFunc(found, func(a, b barrier) int { return strings.Compare(a.where, b.where) })
	return found, nil
}

// acceptBridge returns the command for one of the iptables programs.
func acceptBridge(program, bridge string) string {
	return fmt.Sprintf("%[1]s -I FORWARD -i %[2]s -j ACCEPT; %[1]s -I FORWARD -o %[2]s -j ACCEPT", program, bridge)
}

// nftBarriers walks each foreign base chain on the forward hook as a packet from the bridge would, but
// skips rules that match only some of these packets.
func nftBarriers(on Bridge) ([]barrier, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	var found []barrier
	for _, ch := range chains {
		if !seesForwarded(ch) || !concerns(ch.Table, on) {
			continue
		}
		w := walk{rules: func(name string) ([]step, error) { return nftSteps(c, ch.Table, name, on) },
			known: map[string]fate{}}
		end, err := w.fateIn(ch.Name, 0)
		if err != nil {
			return nil, err
		}
		if end == undecided && ch.Policy != nil && *ch.Policy == nftables.ChainPolicyDrop {
			end = dropped
		}
		if end == dropped {
			found = append(found, nftBarrier(ch, on.Name))
		}
	}
	return found, nil
}

// seesForwarded reports whether a chain of others filters forwarded packets.
func seesForwarded(ch *nftables.Chain) bool {
	return ch.Type == nftables.ChainTypeFilter && ch.Hooknum != nil && *ch.Hooknum == *nftables.ChainHookForward &&
		!strings.HasPrefix(ch.Table.Name, "kuri-")
}

// concerns reports whether a table sees packets of a family that the bridge has.
func concerns(t *nftables.Table, on Bridge) bool {
	switch t.Family {
	case nftables.TableFamilyINet:
		return true
	case nftables.TableFamilyIPv4:
		return on.has(true)
	case nftables.TableFamilyIPv6:
		return on.has(false)
	}
	return false
}

func nftBarrier(ch *nftables.Chain, bridge string) barrier {
	family := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip",
		nftables.TableFamilyIPv6: "ip6"}[ch.Table.Family]
	where := fmt.Sprintf("table %s %s chain %s", family, ch.Table.Name, ch.Name)
	switch {
	case family == "inet" && ch.Table.Name == "firewalld":
		return barrier{where: "firewalld",
			mend: fmt.Sprintf("firewall-cmd --permanent --zone=trusted --change-interface=%s; firewall-cmd --reload", bridge)}
	case family != "inet" && ch.Table.Name == "filter" && ch.Name == "FORWARD": // the names of iptables-nft
		return barrier{where: where, mend: acceptBridge(family+"tables-nft", bridge), chain: ch}
	}
	return barrier{where: where, chain: ch,
		mend: fmt.Sprintf("nft insert rule %[1]s %[2]s %[3]s iifname %[4]s accept; nft insert rule %[1]s %[2]s %[3]s oifname %[4]s accept", family, ch.Table.Name, ch.Name, bridge)}
}

// fate is the verdict on a packet at the end of a chain.
type fate int

const (
	undecided fate = iota // it comes out at the end
	passes
	dropped
)

// step is a rule that is about every packet from the bridge.
type step struct {
	fate fate   // undecided: go on in another chain
	to   string // that chain; "" is back to where this one was called
	last bool   // goto: rules after it do not count
}

// walk goes through chains as a packet from the bridge does.
type walk struct {
	rules func(chain string) ([]step, error)
	known map[string]fate // so that chains that are called from many places are walked once
}

// deepest is how deep the kernel lets chains call each other.
const deepest = 64

func (w walk) fateIn(chain string, depth int) (fate, error) {
	if f, ok := w.known[chain]; ok || depth > deepest {
		return f, nil
	}
	steps, err := w.rules(chain)
	if err != nil {
		return undecided, err
	}
	end := undecided
	for _, s := range steps {
		if end = s.fate; end == undecided && s.to != "" {
			if end, err = w.fateIn(s.to, depth+1); err != nil {
				return undecided, err
			}
		}
		if end != undecided || s.to == "" || s.last {
			break
		}
	}
	w.known[chain] = end
	return end, nil
}

// nftSteps reads the rules of a chain.
func nftSteps(c *nftables.Conn, t *nftables.Table, chain string, on Bridge) ([]step, error) {
	rules, err := c.GetRules(t, &nftables.Chain{Name: chain, Table: t})
	if err != nil {
		return nil, fmt.Errorf("list the rules of table %s chain %s: %w", t.Name, chain, err)
	}
	sets := func(name string) (*nftables.Set, []nftables.SetElement, error) {
		set, err := c.GetSetByName(t, name)
		if err != nil {
			return nil, nil, fmt.Errorf("read the set %s of table %s: %w", name, t.Name, err)
		}
		elements, err := c.GetSetElements(set)
		if err != nil {
			return nil, nil, fmt.Errorf("list the set %s of table %s: %w", name, t.Name, err)
		}
		return set, elements, nil
	}
	var steps []step
	for _, r := range rules {
		s, ok, err := nftStep(r.Exprs, sets, on)
		if err != nil {
			return nil, err
		}
		if ok {
			steps = append(steps, s)
		}
	}
	return steps, nil
}

// nftStep returns the effect of a rule on every packet from the bridge. ok is false if the rule matches
// only some of them or has no effect.
func nftStep(exprs []expr.Any, sets setReader, on Bridge) (s step, ok bool, err error) {
	loaded := map[uint32]expr.MetaKey{}
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Meta:
			if !e.SourceRegister { // else it sets a mark
				loaded[e.Register] = e.Key
			}
		case *expr.Immediate: // the mark
			delete(loaded, e.Register)
		case *expr.Cmp:
			if key, ok := loaded[e.Register]; !ok || !fromBridge(key, e, on) {
				return step{}, false, nil
			}
		case *expr.Lookup:
			key, ok := loaded[e.SourceRegister]
			if !ok {
				return step{}, false, nil
			}
			verdict, holds, err := lookUp(key, e, sets, on)
			if err != nil || !holds {
				return step{}, false, err
			}
			if verdict != nil {
				s, ok = verdictStep(verdict)
				return s, ok, nil
			}
		case *expr.Match: // of iptables-nft
			if e.Name != "comment" {
				return step{}, false, nil
			}
		case *expr.Target:
			return step{fate: dropped}, e.Name == "REJECT" || e.Name == "DROP", nil
		case *expr.Reject:
			return step{fate: dropped}, true, nil
		case *expr.Verdict:
			s, ok = verdictStep(e)
			return s, ok, nil
		default:
			return step{}, false, nil
		}
	}
	return step{}, false, nil
}

// setReader reads a set or map of a table.
type setReader func(name string) (*nftables.Set, []nftables.SetElement, error)

// lookUp reports whether a lookup of a rule matches every packet that comes from the bridge and leaves
// through another link. verdict is that of the verdict map for these packets, or nil for a set. Sets
// of ranges (names with a wildcard) and of concatenations match only some packets.
func lookUp(key expr.MetaKey, l *expr.Lookup, sets setReader,
	on Bridge) (verdict *expr.Verdict, holds bool, err error) {
	bridge := binaryutil.NativeEndian.PutUint32(uint32(on.Index))
	switch key {
	case expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME:
		bridge = make([]byte, unix.IFNAMSIZ)
		copy(bridge, on.Name)
	case expr.MetaKeyIIF, expr.MetaKeyOIF:
	default:
		return nil, false, nil
	}
	set, elements, err := sets(l.SetName)
	if err != nil || set.Interval ||
		slices.ContainsFunc(elements, func(e nftables.SetElement) bool { return len(e.Key) != len(bridge) }) {
		return nil, false, err
	}
	comes := key == expr.MetaKeyIIFNAME || key == expr.MetaKeyIIF
	at := slices.IndexFunc(elements, func(e nftables.SetElement) bool { return slices.Equal(e.Key, bridge) })
	switch {
	case l.IsDestRegSet: // a map
		if !comes || at < 0 || l.DestRegister != unix.NFT_REG_VERDICT {
			return nil, false, nil
		}
		verdict, err := verdictOf(elements[at])
		return verdict, err == nil, err
	case comes:
		return nil, (at >= 0) != l.Invert, nil
	}
	// the outgoing link is unknown, but is not the bridge
	return nil, l.Invert && (len(elements) == 0 || at == 0 && len(elements) == 1), nil
}

// verdictOf reads the verdict of an element of a map, which the library leaves as the attributes that it came in.
func verdictOf(e nftables.SetElement) (*expr.Verdict, error) {
	attributes, err := nl.NewAttributeDecoder(e.Val)
	if err != nil {
		return nil, fmt.Errorf("read a verdict map of nftables: %w", err)
	}
	attributes.ByteOrder = binary.BigEndian
	v := &expr.Verdict{}
	for attributes.Next() {
		switch attributes.Type() {
		case unix.NFTA_VERDICT_CODE:
			v.Kind = expr.VerdictKind(int32(attributes.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = attributes.String()
		}
	}
	return v, attributes.Err()
}

func verdictStep(v *expr.Verdict) (step, bool) {
	switch v.Kind {
	case expr.VerdictAccept:
		return step{fate: passes}, true
	case expr.VerdictDrop:
		return step{fate: dropped}, true
	case expr.VerdictReturn:
		return step{}, true
	case expr.VerdictJump:
		return step{to: v.Chain}, true
	case expr.VerdictGoto:
		return step{to: v.Chain, last: true}, true
	}
	return step{}, false
}

// fromBridge reports whether a comparison holds for every packet that comes from the bridge and goes elsewhere.
func fromBridge(key expr.MetaKey, c *expr.Cmp, on Bridge) bool {
	same := false
	switch key {
	case expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME:
		same = isName(c.Data, on.Name)
	case expr.MetaKeyIIF, expr.MetaKeyOIF:
		same = slices.Equal(c.Data, binaryutil.NativeEndian.PutUint32(uint32(on.Index)))
	default:
		return false
	}
	comes := key == expr.MetaKeyIIFNAME || key == expr.MetaKeyIIF
	switch c.Op {
	case expr.CmpOpEq:
		return comes && same
	case expr.CmpOpNeq:
		return comes != same
	}
	return false
}

// isName reports whether data of a rule matches the name of the link: as a whole with a zero byte, else as a prefix.
func isName(data []byte, link string) bool {
	name, _, whole := strings.Cut(string(data), "\x00")
	return name == link || !whole && strings.HasPrefix(link, name)
}
