package redisstore

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

const followDefault = 1000 // records in a View when max is not positive

// Follow implements [store.Store]. A View has at most a megabyte or so, whatever max says.
func (n *space) Follow(ctx context.Context, after store.Position, kinds []store.Kind, max int) (store.View, error) {
	if err := n.usable(ctx); err != nil {
		return store.View{}, err
	}
	if max <= 0 {
		max = followDefault
	}
	if after.N < 0 {
		return store.View{}, fmt.Errorf("%w: position %d", store.ErrDiverged, after.N)
	}
	args := make([]any, 0, 2+len(kinds))
	args = append(args, fmt.Sprintf("%016x", uint64(after.N)+1), max)
	for _, k := range kinds {
		args = append(args, strings.Clone(string(k)))
	}
	r, l, err := n.ask(ctx, scriptFollow, args...)
	if err != nil {
		return store.View{}, err
	}
	if len(r) < 3 || len(r)%2 != 1 {
		return store.View{}, errValue("the answer to Follow does not read")
	}
	now, err1 := strconv.ParseInt(str(r[0]), 10, 64)
	head, err2 := strconv.ParseUint(str(r[1]), 16, 63)
	if err1 != nil || err2 != nil {
		return store.View{}, errValue("the answer to Follow does not read")
	}
	if after != (store.Position{}) && (after.History != l.id || after.N > int64(head)) {
		return store.View{}, fmt.Errorf("%w: position %d of history %x, the store is at %d of %x",
			store.ErrDiverged, after.N, after.History, head, l.id)
	}
	v := store.View{Next: store.Position{History: l.id, N: int64(head)}, Now: now}
	if last := str(r[2]); last != "" {
		at, err := strconv.ParseUint(last, 16, 63)
		if err != nil {
			return store.View{}, errValue("a place in the order of state does not read")
		}
		v.Next.N, v.More = int64(at), true
	}
	for i := 3; i < len(r); i += 2 {
		member := str(r[i])
		if len(member) < 16 {
			return store.View{}, errValue("an entry of the order of state does not read")
		}
		kind, id, _ := strings.Cut(member[16:], "\x00")
		rec, err := decodeRecord(store.Kind(kind), id, str(r[i+1]), l.id)
		if err != nil {
			return store.View{}, err
		}
		if member[:16] != fmt.Sprintf("%016x", uint64(rec.Pos.N)) {
			return store.View{}, errValue(fmt.Sprintf("record %s/%q stands at another place than its own", kind, id))
		}
		v.Records = append(v.Records, rec)
	}
	return v, nil
}
