// Package gather asks an engine once for what several callers want at the same time: most of what a read costs is the question. Nobody
// waits for company: who comes first is asked for at once, and who comes while all lanes are at it goes together with the others.
//
// It owns the queue of a namespace's Gets. Each answer is of a question that was sent after its caller came. It stands on package store
// alone and holds no lock while it asks. The stores on SQL call it.
package gather

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/store"
)

// Gets is the queue of a namespace. Its exported fields are set before use.
type Gets struct {
	Lanes   int           // questions under way at once
	Most    int           // records in one
	Timeout time.Duration // of a question
	// Ask reads records of a kind, each with its own memory. IDs are distinct; what isn't there is left out.
	Ask func(ctx context.Context, kind store.Kind, ids []string) ([]store.Record, error)

	mu      sync.Mutex // guards all below
	waiting []*want
	running int
}

// want is one call.
type want struct {
	kind store.Kind
	id   string
	ctx  context.Context // of whoever waits
	got  chan answer     // never blocks
}

type answer struct {
	record store.Record
	err    error
}

// Get returns one record, or store.ErrNotFound. It ends with ctx; the question goes on without it.
func (g *Gets) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	w := &want{store.Kind(strings.Clone(string(kind))), strings.Clone(id), ctx, make(chan answer, 1)}
	g.mu.Lock()
	g.waiting = append(g.waiting, w)
	start := g.running < g.Lanes
	if start {
		g.running++
	}
	g.mu.Unlock()
	if start {
		go g.lane()
	}
	select {
	case a := <-w.got:
		return a.record, a.err
	case <-ctx.Done():
		return store.Record{}, ctx.Err()
	}
}

func (g *Gets) lane() {
	for {
		batch := g.take()
		if len(batch) == 0 {
			return
		}
		g.answer(batch)
	}
}

// take removes what shares the next question, which is of one kind, and drops those whose callers have gone. Where nothing is left it ends
// the lane.
func (g *Gets) take() (batch []*want) {
	g.mu.Lock()
	defer g.mu.Unlock()
	rest := g.waiting[:0]
	for _, w := range g.waiting {
		switch {
		case w.ctx.Err() != nil:
		case len(batch) < g.Most && (len(batch) == 0 || w.kind == batch[0].kind):
			batch = append(batch, w)
		default:
			rest = append(rest, w)
		}
	}
	clear(g.waiting[len(rest):])
	g.waiting = rest
	if len(batch) == 0 {
		g.running--
	}
	return batch
}

func (g *Gets) answer(batch []*want) {
	ctx, cancel := context.WithTimeout(context.Background(), g.Timeout)
	defer cancel()
	wanted := make(map[string][]*want, len(batch))
	ids := make([]string, 0, len(batch))
	for _, w := range batch {
		if wanted[w.id] == nil {
			ids = append(ids, w.id)
		}
		wanted[w.id] = append(wanted[w.id], w)
	}
	records, err := g.Ask(ctx, batch[0].kind, ids)
	for i := range records {
		for k, w := range wanted[records[i].ID] {
			r := records[i]
			if k > 0 {
				r.Data = bytes.Clone(r.Data)
			}
			w.got <- answer{record: r}
		}
		delete(wanted, records[i].ID)
	}
	if err == nil {
		err = store.ErrNotFound
	}
	for _, list := range wanted {
		for _, w := range list {
			w.got <- answer{err: err}
		}
	}
}
