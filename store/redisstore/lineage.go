package redisstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// layout is written into each namespace, so that a later version knows what it finds.
const layout = "1"

// lineage is what this process knows of a namespace's history.
type lineage struct {
	id   uint64
	text string       // id, as the server has it
	seen atomic.Int64 // the most writes that an answer told of
}

type lineageValue = atomic.Pointer[lineage]

func (l *lineage) saw(writes int64) {
	for {
		old := l.seen.Load()
		if writes <= old || l.seen.CompareAndSwap(old, writes) {
			return
		}
	}
}

// stateKinds are those whose records stand in the order of state.
var stateKinds = []any{
	string(store.KindRule), string(store.KindKey), string(store.KindClient), string(store.KindRole), string(store.KindAPIKey), string(store.KindMeta),
}

func historyText(id uint64) string { return fmt.Sprintf("%016x", id) }

// common are the arguments that every script begins with.
func (n *space) common(l *lineage, extra int) []any {
	args := make([]any, 0, 3+extra)
	if l == nil {
		return append(args, "", "0", n.s.o.WaitReplicas)
	}
	return append(args, l.text, strconv.FormatInt(l.seen.Load(), 10), n.s.o.WaitReplicas)
}

// opened returns the lineage, and opens the namespace if this process has not done so yet.
func (n *space) opened(ctx context.Context) (*lineage, error) {
	if l := n.lineage.Load(); l != nil {
		return l, nil
	}
	if err := n.reopen(ctx, nil); err != nil {
		return nil, err
	}
	return n.lineage.Load(), nil
}

// reopen looks at the server again, after a script said that it is not what was knew, and learns its history.
func (n *space) reopen(ctx context.Context, was *lineage) error {
	select {
	case n.opening <- struct{}{}:
		defer func() { <-n.opening }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if n.lineage.Load() != was {
		return nil // somebody else has just looked
	}
	var raw [8]byte
	_, _ = rand.Read(raw[:]) // never fails
	raw[7] |= 1              // never zero
	restart := "0"
	if n.s.o.RestartLosesNothing {
		restart = "1"
	}
	begins := historyText(binary.BigEndian.Uint64(raw[:]))
	r, err := n.s.retried(ctx, func(ctx context.Context) ([]any, error) {
		// What the server promises is looked at before anything that it says is believed.
		vetted, err := n.s.vet(ctx, n.meta)
		if err != nil {
			return nil, err
		}
		open := func(from string) ([]any, error) {
			args := append(n.common(was, 5+len(stateKinds)), begins, layout, restart, vetted, from)
			return n.s.run(ctx, scriptOpen, n.meta, append(args, stateKinds...))
		}
		if n.s.cluster == nil {
			return open(nobody)
		}
		r, err := open("")
		if err != nil || str(r[0]) != "D" || len(r) != 2 {
			return r, err
		}
		from := str(r[1])
		if !n.s.handedOver(ctx, n.meta, from) {
			from = nobody
		}
		return open(from)
	})
	if err != nil {
		return err
	}
	if len(r) != 6 {
		return errValue("the answer to opening does not read")
	}
	text, why := str(r[2]), str(r[3])
	writes, err1 := strconv.ParseInt(str(r[1]), 10, 64)
	lost, err2 := strconv.ParseInt(str(r[4]), 10, 64)
	id, err3 := strconv.ParseUint(text, 16, 64)
	if err := errors.Join(err1, err2, err3); err != nil || id == 0 || len(text) != 16 {
		return errValue("the answer to opening does not read")
	}
	if was != nil && was.id != id || why == "lost" || why == "replid" {
		n.s.log.Error("redisstore: the namespace lost its history; acknowledged writes may be missing",
			"namespace", n.name, "reason", why, "known lost", lost, "server", str(r[5]))
	}
	l := &lineage{id: id, text: text}
	if was != nil && was.id == id {
		l.seen.Store(was.seen.Load())
	}
	l.saw(writes)
	n.lineage.Store(l)
	return nil
}

func str(v any) string {
	s, _ := v.(string)
	return s
}

// retried runs one question until the server answers it, the answer is no passing one, or ctx ends.
func (s *Store) retried(ctx context.Context, question func(context.Context) ([]any, error)) ([]any, error) {
	var why error // the last failure that says more than that time is over
	for wait := firstWait; ; {
		r, err := question(ctx)
		if err == nil {
			switch code := str(r[0]); code {
			case "S":
				err = fmt.Errorf("%w: the server is a %v", errAway, r[1])
			case "L":
				err = fmt.Errorf("%w: %v of %d replicas are connected", errAway, r[1], s.o.WaitReplicas)
			case "M":
				err = fmt.Errorf("%w: %v", errAway, r[1])
			case "V":
				err = fmt.Errorf("%w: the server changed while it was looked at", errAway)
			case "E":
				return nil, ErrEmptied
			case "X":
				return nil, fmt.Errorf("%w: it does not tell %v", ErrUnsafe, r[1])
			default:
				return r, nil
			}
		} else if e, ok := serverError(err); ok && !passing(e.Error()) {
			return nil, named(err)
		} else if errors.Is(err, ErrUnsafe) || errors.Is(err, ErrDamaged) {
			return nil, err
		}
		if s.ctx.Err() != nil {
			return nil, ErrClosed
		}
		if ctx.Err() != nil || !pause(ctx, s.ctx, &wait) {
			if why != nil && errors.Is(err, context.DeadlineExceeded) {
				err = fmt.Errorf("%w: %w", err, why)
			}
			if errors.Is(err, errAway) {
				return nil, err
			}
			return nil, named(err)
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			why = err
		}
	}
}

// Waits between two attempts double from the first to the longest, and each is between half and all of that: processes
// that lost a server together do not come back together.
const (
	firstWait   = 8 * time.Millisecond
	longestWait = 250 * time.Millisecond
)

// pause waits before another attempt; false when one of the contexts ended first.
func pause(ctx, closing context.Context, wait *time.Duration) bool {
	t := time.NewTimer(*wait/2 + mrand.N(*wait/2))
	defer t.Stop()
	*wait = min(2**wait, longestWait)
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-closing.Done():
	}
	return false
}

// ask asks a question that may be repeated: a read, or a write that may be done twice. It returns the answer behind the
// count of writes, and the history that it belongs to.
func (n *space) ask(ctx context.Context, sc *script, args ...any) ([]any, *lineage, error) {
	if err := n.usable(ctx); err != nil {
		return nil, nil, err
	}
	own, cancel := context.WithTimeout(ctx, n.s.o.Timeout)
	defer cancel()
	select {
	case n.s.reads <- struct{}{}:
	case <-own.Done():
		return nil, nil, own.Err()
	}
	if n.s.prompt {
		defer func() { <-n.s.reads }()
		r, l, err := n.askNow(own, sc, args)
		if cerr := ctx.Err(); err != nil && cerr != nil {
			err = cerr
		}
		return r, l, err
	}
	// The client does not hear its context: whoever gives up leaves the question behind, until the client's timeouts end
	// it. There are maxReads of those at most.
	type result struct {
		r   []any
		l   *lineage
		err error
	}
	done := make(chan result, 1)
	err := n.s.background(func() {
		defer func() { <-n.s.reads }()
		r, l, err := n.askNow(own, sc, args)
		done <- result{r, l, err}
	})
	if err != nil {
		<-n.s.reads
		return nil, nil, err
	}
	select {
	case r := <-done:
		if cerr := ctx.Err(); r.err != nil && cerr != nil {
			r.err = cerr
		}
		return r.r, r.l, r.err
	case <-own.Done():
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		return nil, nil, fmt.Errorf("redisstore: no answer within %s: %w", n.s.o.Timeout, own.Err())
	}
}

func (n *space) askNow(ctx context.Context, sc *script, args []any) ([]any, *lineage, error) {
	for {
		l, err := n.opened(ctx)
		if err != nil {
			return nil, nil, err
		}
		all := append(n.common(l, len(args)), args...)
		r, err := n.s.retried(ctx, func(ctx context.Context) ([]any, error) { return n.s.run(ctx, sc, n.meta, all) })
		if err != nil {
			return nil, nil, err
		}
		switch str(r[0]) {
		case "A":
			writes, err := strconv.ParseInt(str(r[1]), 10, 64)
			if err != nil {
				return nil, nil, errValue("a count of writes does not read")
			}
			l.saw(writes)
			return r[2:], l, nil
		case "H":
			if err := n.reopen(ctx, l); err != nil {
				return nil, nil, err
			}
		default:
			return r, l, nil
		}
	}
}
