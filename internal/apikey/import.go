// How API keys of another program are written to the store (APIKeys.Import).

package apikey

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/apitoken-go/apitoken/internal/commit"
	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/opaque"
	"github.com/apitoken-go/apitoken/internal/quota"
	"github.com/apitoken-go/apitoken/store"
)

// ImportBatch is how many keys an Importer takes at once.
const (
	ImportBatch = importGroup * importAtOnce

	importGroup  = store.MaxPuts // keys in one change
	importAtOnce = 8             // changes
)

// Importer writes imported keys into the store.
type Importer struct {
	Namespace string
	Room      *Room
	// Write writes new records under their IDs, with their count if there is one. store.ErrConflict: one of them is there.
	Write func(ctx context.Context, ids []string, keys []*Import, count *quota.Count) error
}

// Import writes keys, several in a change and several changes at once. What meets a record that is there is written alone, unless it
// was imported before. imported counts those that were written.
func (m *Importer) Import(ctx context.Context, keys []*Import) (imported int, err error) {
	var alone, many []*Import
	seen := map[opaque.ID]bool{}
	for _, x := range keys {
		id := x.id(m.Namespace, 0)
		if seen[id] || m.Room.Quota.Limit > 0 {
			alone = append(alone, x)
			continue
		}
		seen[id] = true
		many = append(many, x)
	}

	var mu sync.Mutex // guards imported, alone and err
	var wg sync.WaitGroup
	for group := range slices.Chunk(many, importGroup) {
		wg.Go(func() {
			ids := make([]string, len(group))
			for i, x := range group {
				ids[i] = x.id(m.Namespace, 0).String()
			}
			e := m.Write(ctx, ids, group, nil)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case e == nil:
				imported += len(group)
			case errors.Is(e, store.ErrConflict):
				alone = append(alone, group...)
			case err == nil:
				err = e
			}
		})
	}
	wg.Wait()

	for _, x := range alone {
		if err != nil {
			break
		}
		var fresh bool
		if fresh, err = m.one(ctx, x); fresh {
			imported++
		}
	}
	return imported, err
}

// one writes one key where no other is. fresh is false where it was imported before.
func (m *Importer) one(ctx context.Context, x *Import) (fresh bool, err error) {
	leave, err := m.Room.Enter(ctx, x.Subject)
	if err != nil {
		return false, err
	}
	defer leave()
	err = commit.Retry("parallel imports", func() error {
		id, err := m.place(ctx, x)
		if id == "" || err != nil {
			return err
		}
		count, err := m.Room.More(ctx, x.Subject)
		if err != nil {
			return err
		}
		if count != nil {
			count.Add(id, x.Kept())
		}
		err = m.Write(ctx, []string{id}, []*Import{x}, count)
		fresh = err == nil
		return err
	})
	return fresh, err
}

// place is the first free ID for x; empty: it was imported before.
func (m *Importer) place(ctx context.Context, x *Import) (string, error) {
	for n := range maxSame {
		id := x.id(m.Namespace, n).String()
		r, err := m.Room.Quota.Writer.Get(ctx, store.KindAPIKey, id)
		if errors.Is(err, fault.NotFound) {
			return id, nil
		}
		var there Record
		if err == nil {
			err = commit.Read(&Form, r, &there)
		}
		if err != nil || there.Old != nil && there.Old.Sum == x.Old.Sum {
			return "", err
		}
	}
	return "", fault.Fail(fault.InvalidRequest, "%d imported keys are found by the same already: take more of a key to find it by", maxSame)
}
