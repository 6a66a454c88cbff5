package etcdstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/apitoken-go/apitoken/store"
)

type keyValue = mvccpb.KeyValue

// Steps of a purge: entries of the expiry index read at once, and records removed in one transaction.
const (
	purgeRead  = 96
	purgeWrite = 8
)

// Purge implements [store.Store]. The store's own clock, for this, does not believe a forward step of this process's
// clock before it has stood for an hour, unless another process has believed it before. Each step is a transaction of
// its own; the number is right even where err is not nil. In a cluster without room, removing records still works.
// With Options.Events, events are purged in that store, by its clock.
func (n *space) Purge(ctx context.Context, kind store.Kind, before int64, max int) (int, error) {
	deadline := time.Now().Add(n.s.timeout)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	if err := n.usable(ctx); err != nil {
		return 0, err
	}
	if err := kind.Check(); err != nil {
		return 0, err
	}
	if kind == store.KindEvent {
		if dest := n.dest(); dest != nil {
			return dest.Purge(ctx, kind, before, max)
		}
	}
	believed, err := n.s.believed(ctx)
	if err != nil {
		return 0, err
	}
	if before > believed {
		before = believed + 1 // alive is Expires > now
	}
	r, err := n.get(ctx, n.keys.fence, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	if r.Count > 0 {
		return 0, store.ErrReadOnly
	}
	if before <= 1 || max <= 0 {
		return 0, nil
	}
	if kind == store.KindEvent {
		return n.purgeEvents(ctx, deadline, before, max)
	}
	total := 0
	prefix := n.keys.dues(kind)
	for from, end := prefix, prefix+hex64(before); total < max; {
		r, err := n.get(ctx, from, clientv3.WithRange(end), clientv3.WithKeysOnly(), clientv3.WithLimit(purgeRead))
		if err != nil {
			return total, err
		}
		removed, err := n.purgeStep(ctx, deadline, kind, prefix, r.Kvs, before, max-total)
		total += removed
		if err != nil {
			return total, err
		}
		if !r.More {
			break
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
	return total, nil
}

// purgeStep looks at the records of some entries of the expiry index.
func (n *space) purgeStep(ctx context.Context, deadline time.Time, kind store.Kind, prefix string, dues []*keyValue, before int64, most int) (int, error) {
	if len(dues) == 0 {
		return 0, nil
	}
	ops := make([]clientv3.Op, len(dues))
	for i, kv := range dues {
		if len(kv.Key) <= len(prefix)+16 {
			return 0, errValue("an entry of the expiry index does not read")
		}
		ops[i] = clientv3.OpGet(n.keys.record(kind, string(kv.Key[len(prefix)+16:])))
	}
	r, err := n.s.read(ctx, ops...)
	if err != nil {
		return 0, err
	}
	var removals, repairs []clientv3.Op
	taken := map[string]bool{}
	for i, kv := range dues {
		due, id := string(kv.Key), string(kv.Key[len(prefix)+16:])
		key := n.keys.record(kind, id)
		kvs := r.Responses[i].GetResponseRange().Kvs
		if len(kvs) == 0 {
			repairs = append(repairs, clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(key), "=", 0)},
				[]clientv3.Op{clientv3.OpDelete(due)}, nil))
			continue
		}
		rec, err := decodeRecord(kvs[0].Value, 0)
		if err != nil {
			return 0, fmt.Errorf("%s/%q: %w", kind, id, err)
		}
		same := clientv3.Compare(clientv3.ModRevision(key), "=", kvs[0].ModRevision)
		switch {
		case rec.Expires > 0 && rec.Expires < before:
			if taken[id] || len(removals) >= most {
				continue
			}
			taken[id] = true
			gone := []clientv3.Op{clientv3.OpDelete(key), clientv3.OpDelete(due)}
			if rec.Pos.N != 0 {
				gone = append(gone, clientv3.OpDelete(n.keys.at(rec.Pos.N)))
			}
			for _, k := range n.keys.indexes(&rec) {
				gone = append(gone, clientv3.OpDelete(k))
			}
			removals = append(removals, clientv3.OpTxn([]clientv3.Cmp{same}, gone, nil))
		default:
			// It was rewritten with another expiry: the index catches up now, not at each write.
			then := []clientv3.Op{clientv3.OpDelete(due)}
			if rec.Expires > 0 {
				at := dueAt(rec.Expires, n.s.now())
				if at < before {
					at = rec.Expires
				}
				if later := n.keys.due(kind, at, id); later != due && !taken[later] {
					taken[later] = true
					then = append(then, clientv3.OpPut(later, ""))
				} else if later == due {
					continue
				}
			}
			repairs = append(repairs, clientv3.OpTxn([]clientv3.Cmp{same}, then, nil))
		}
	}
	removed := 0
	for len(removals) > 0 {
		part := removals[:min(purgeWrite, len(removals))]
		removals = removals[len(part):]
		k, err := n.purgeTxn(ctx, deadline, part)
		removed += k
		if err != nil {
			return removed, err
		}
	}
	for len(repairs) > 0 {
		part := repairs[:min(purgeWrite, len(repairs))]
		repairs = repairs[len(part):]
		if _, err := n.purgeTxn(ctx, deadline, part); err != nil && !errors.Is(err, ErrFull) { // the index can wait
			return removed, err
		}
	}
	return removed, nil
}

// purgeTxn runs nested transactions and tells how many took place. It is not repeated, and its caller does not end
// it before the deadline: what it did would not be counted.
func (n *space) purgeTxn(ctx context.Context, deadline time.Time, ops []clientv3.Op) (int, error) {
	own, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	defer cancel()
	l := n.s.lineage.Load()
	r, err := n.s.client.Txn(own).If(
		clientv3.Compare(clientv3.Value(n.s.prefix+keyHistory), "=", l.raw),
		clientv3.Compare(clientv3.CreateRevision(n.keys.fence), "=", 0),
	).Then(ops...).Else(clientv3.OpGet(n.keys.fence, clientv3.WithCountOnly())).Commit()
	if err != nil {
		_, err = fateOf(err)
		return 0, fmt.Errorf("etcdstore: purge: %w", err)
	}
	if !r.Succeeded {
		if r.Responses[0].GetResponseRange().Count > 0 {
			return 0, store.ErrReadOnly
		}
		if err := n.s.check(own, false); err != nil {
			return 0, err
		}
		return 0, fmt.Errorf("etcdstore: purge: %w", errMoved)
	}
	done := 0
	for _, one := range r.Responses {
		if t := one.GetResponseTxn(); t != nil && t.Succeeded {
			done++
		}
	}
	return done, ctx.Err()
}

// purgeEvents removes expired events where etcd is the only place for them, oldest first.
func (n *space) purgeEvents(ctx context.Context, deadline time.Time, before int64, most int) (int, error) {
	total := 0
	for epoch := int64(0); total < most; epoch++ {
		first, rev, ok, err := n.firstEpoch(ctx, epoch, 0)
		if err != nil || !ok {
			return total, err
		}
		epoch = first
		entries, err := n.epochEntries(ctx, epoch, rev, true)
		if err != nil {
			return total, err
		}
		for i := range entries {
			if total == most {
				break
			}
			k, err := n.purgeEntry(ctx, deadline, &entries[i], before, most-total)
			total += k
			if err != nil {
				return total, err
			}
		}
		if epoch == math.MaxInt64 {
			break
		}
	}
	return total, nil
}

// purgeEntry removes expired events of one change. What is left keeps its place.
func (n *space) purgeEntry(ctx context.Context, deadline time.Time, e *entry, before int64, most int) (int, error) {
	var kept []store.Record
	var numbers []int
	gone, mark := 0, int64(0)
	for i := range e.events {
		if x := e.events[i].Expires; x > 0 && x < before && gone < most {
			gone++
			mark = e.at(i)
			continue
		}
		kept, numbers = append(kept, e.events[i]), append(numbers, e.numbers[i])
	}
	if gone == 0 {
		return 0, nil
	}
	trimmed, err := n.get(ctx, n.keys.trimmed)
	if err != nil {
		return 0, err
	}
	var ops []clientv3.Op
	cmp := clientv3.Compare(clientv3.CreateRevision(n.keys.trimmed), "=", 0)
	if len(trimmed.Kvs) > 0 {
		old, err := parse64(trimmed.Kvs[0].Value)
		if err != nil {
			return 0, err
		}
		mark = max(mark, old)
		cmp = clientv3.Compare(clientv3.ModRevision(n.keys.trimmed), "=", trimmed.Kvs[0].ModRevision)
	}
	ops = append(ops, clientv3.OpPut(n.keys.trimmed, be64(mark)))
	if len(kept) == 0 {
		ops = append(ops, clientv3.OpDelete(e.key), clientv3.OpDelete(n.keys.weightsOf(e.key), clientv3.WithPrefix()))
	} else {
		ops = append(ops, clientv3.OpPut(e.key, string(encodeEvents(e.version, e.written, e.history, kept, numbers, 0))))
	}
	done, err := n.purgeTxn(ctx, deadline, []clientv3.Op{clientv3.OpTxn(
		[]clientv3.Cmp{cmp, clientv3.Compare(clientv3.ModRevision(e.key), "=", e.mod)}, ops, nil)})
	return done * gone, err
}
