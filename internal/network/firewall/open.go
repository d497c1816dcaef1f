package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// open inserts two rules into each of the chains, if the configuration allows it: they accept
// packets from and to the bridge. Their comment, Config.Comment, identifies them. It reports
// whether it opened a chain.
func (f *Firewall) open(ctx context.Context, found []barrier, bridge string) (opened bool, err error) {
	if !f.Open {
		return false, nil
	}
	var errs []error
	for _, w := range found {
		switch {
		case w.chain != nil:
			err = f.openChain(w.chain, bridge)
		case w.program != "":
			err = f.openLegacy(ctx, w.program, bridge)
		default:
			continue // firewalld's, whose owner wants another zone for the bridge
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("let the bridge %s pass in %s: %w", bridge, w.where, err))
			continue
		}
		opened = true
		slog.Info("the node's firewall has rules of ours that let the bridge pass, until the built-in network is pruned",
			"in", w.where, "bridge", bridge, "comment", f.Comment)
	}
	return opened, errors.Join(errs...)
}

// openChain writes the rules as iptables-nft does, so that it lists them as its own.
func (f *Firewall) openChain(ch *nftables.Chain, bridge string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	for _, key := range []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME} {
		c.InsertRule(&nftables.Rule{Table: ch.Table, Chain: ch, UserData: userdata.AppendString(nil, userdata.TypeComment,
			f.Comment), Exprs: []expr.Any{
			&expr.Meta{Key: key, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(bridge + "\x00")},
			&expr.Counter{},
			&expr.Verdict{Kind: expr.VerdictAccept},
		}})
	}
	return c.Flush()
}

// openLegacy runs the program, for there is no other way to change one rule of iptables-legacy.
func (f *Firewall) openLegacy(ctx context.Context, program, bridge string) error {
	for _, direction := range []string{"-i", "-o"} {
		if out, err := f.legacyRule(ctx, program, "-I", direction, bridge); err != nil {
			return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
		}
	}
	return nil
}

func (f *Firewall) legacyRule(ctx context.Context, program, verb, direction, bridge string) ([]byte, error) {
	return exec.CommandContext(ctx, program, "-w", "3", verb, "FORWARD", direction, bridge, "-m", "comment", "--comment",
		f.Comment, "-j", "ACCEPT").CombinedOutput()
}

// closeAgain takes the rules of ours out of others' chains, also those of an earlier process.
func (f *Firewall) closeAgain(ctx context.Context) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	chains, err := c.ListChains()
	if err != nil {
		return fmt.Errorf("list the chains of nftables: %w", err)
	}
	for _, ch := range chains {
		if !seesForwarded(ch) {
			continue
		}
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return fmt.Errorf("list the rules of table %s chain %s: %w", ch.Table.Name, ch.Name, err)
		}
		for _, r := range rules {
			if comment, ok := userdata.GetString(r.UserData, userdata.TypeComment); !ok || comment != f.Comment {
				continue
			}
			if err := c.DelRule(r); err != nil {
				return err
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("take our rules out of the node's firewall: %w", err)
	}
	return f.closeLegacy(ctx)
}

func (f *Firewall) closeLegacy(ctx context.Context) error {
	for _, l := range []legacy{legacy4, legacy6} {
		used, err := l.used()
		if err != nil {
			return err
		}
		if _, err := exec.LookPath(l.program); !used || err != nil {
			continue // without the program there are no rules of ours
		}
		for _, bridge := range f.Names {
			for _, direction := range []string{"-i", "-o"} {
				for range 16 { // one, or what crashes have left
					if _, err := f.legacyRule(ctx, l.program, "-D", direction, bridge); err != nil {
						break
					}
				}
			}
		}
	}
	return nil
}
