package etcdstore

import (
	"context"
	"fmt"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/store"
)

const (
	followDefault = 1000 // records in a View when max is not positive
	followPage    = 1000 // records in one answer of etcd
	followPages   = 32   // answers looked at in one call, when kinds leaves much out
)

// Get implements [store.Store].
func (n *space) Get(ctx context.Context, kind store.Kind, id string) (store.Record, error) {
	ctx, cancel := n.bounded(ctx)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return store.Record{}, err
	}
	if !kind.Possible(id) {
		return store.Record{}, fmt.Errorf("%w: %s/%q", store.ErrNotFound, kind, id)
	}
	l := n.s.lineage.Load()
	r, err := n.s.read(ctx, clientv3.OpGet(n.keys.record(kind, id)))
	if err != nil {
		return store.Record{}, err
	}
	kvs := r.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 {
		return store.Record{}, fmt.Errorf("%w: %s/%q", store.ErrNotFound, kind, id)
	}
	if now := n.s.lineage.Load(); now.id != l.id {
		l = now // read answered under the new history only
	}
	rec, err := decodeRecord(kvs[0].Value, l.id)
	if err != nil {
		return store.Record{}, fmt.Errorf("%s/%q: %w", kind, id, err)
	}
	return rec, nil
}

// Follow implements [store.Store].
func (n *space) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	ctx, cancel := n.bounded(ctx)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return store.View{}, err
	}
	if max <= 0 {
		max = followDefault
	}
	if after.N < 0 {
		return store.View{}, fmt.Errorf("%w: position %d", store.ErrDiverged, after.N)
	}
	view := store.View{Now: n.s.now()}
	from := after.N
	for page := 1; ; page++ {
		size := min(max-len(view.Records), followPage)
		r, err := n.s.read(ctx,
			clientv3.OpGet(n.s.prefix+keyHistory), clientv3.OpGet(n.keys.head),
			clientv3.OpGet(n.keys.at(from+1), clientv3.WithRange(clientv3.GetPrefixRangeEnd(n.keys.order)), clientv3.WithLimit(int64(size))))
		if err != nil {
			return store.View{}, err
		}
		id, err := historyOf(r.Responses[0].GetResponseRange())
		if err != nil {
			return store.View{}, err
		}
		if view.Next.History != 0 && view.Next.History != id {
			return store.View{}, fmt.Errorf("%w: history %x ended during the call", store.ErrDiverged, view.Next.History)
		}
		head := int64(0)
		if kvs := r.Responses[1].GetResponseRange().Kvs; len(kvs) > 0 {
			if head, err = parse64(kvs[0].Value); err != nil {
				return store.View{}, err
			}
		}
		if after != (store.Position{}) && (after.History != id || after.N > head) {
			return store.View{}, fmt.Errorf("%w: position %d of history %x, the store is at %d of %x",
				store.ErrDiverged, after.N, after.History, head, id)
		}
		view.Next.History = id
		n.saw(id, head)

		order := r.Responses[2].GetResponseRange()
		for _, kv := range order.Kvs {
			at, ok := parseHex64(strings.TrimPrefix(string(kv.Key), n.keys.order))
			if !ok {
				return store.View{}, errValue("an entry of the order of state does not read")
			}
			from = at
			rec, err := decodeRecord(kv.Value, id)
			if err != nil {
				return store.View{}, err
			}
			if wanted(kinds, rec.Kind) {
				view.Records = append(view.Records, rec)
			}
		}
		switch {
		case !order.More:
			view.Next.N = head
			return view, nil
		case len(view.Records) >= max || page >= followPages:
			view.Next.N, view.More = from, true
			return view, nil
		}
	}
}

func wanted(kinds []store.Kind, k store.Kind) bool {
	for _, w := range kinds {
		if w == k {
			return true
		}
	}
	return len(kinds) == 0
}
