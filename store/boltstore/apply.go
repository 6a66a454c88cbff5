package boltstore

import (
	"fmt"
	"slices"

	"github.com/apitoken-go/apitoken/store"
)

// intent is a Change made ready by its caller: checked and encoded, so that nothing of the Change is read any more
// when the caller has stopped waiting.
type intent struct {
	id     store.Version
	puts   []intentPut
	events [][]byte
}

type intentPut struct {
	kind      store.Kind
	id        []byte
	expect    store.Version
	expires   int64
	value     []byte
	selectors int    // length of value up to the end of its selectors
	tail      []byte // its entry in the tail, if it is new
	indexed   bool
}

func newIntent(c *store.Change) *intent {
	in := &intent{id: c.ID, puts: make([]intentPut, len(c.Puts)), events: make([][]byte, len(c.Events))}
	for i := range c.Puts {
		p := &c.Puts[i]
		v, n := encodeRecord(&p.Record, c.ID)
		in.puts[i] = intentPut{
			kind: p.Kind, id: []byte(p.ID), expect: p.Expect, expires: p.Expires, value: v, selectors: n, tail: tailEntry(&p.Record),
			indexed: p.Subject != "" || p.Client != "" || p.Grant != "" || p.Token != "" || p.Type != "",
		}
	}
	for i := range c.Events {
		in.events[i] = encodeEvent(&c.Events[i], c.ID)
	}
	return in
}

// revocation may use the last reserve of the disk: a rule, with what it comes with, such as the client that it disables
// or the signing key that it withdraws.
func (in *intent) revocation() bool {
	return slices.ContainsFunc(in.puts, func(p intentPut) bool { return p.kind == store.KindRule })
}

// state reports whether it writes records that have a place in the order.
func (in *intent) state() bool {
	return slices.ContainsFunc(in.puts, func(p intentPut) bool { return p.kind.State() })
}

// outcome of an intent inside the shared transaction. It counts once that has committed.
type outcome struct {
	err   error
	state int64 // head of the namespace's state after it
	now   int64
}

// apply checks everything before it writes anything: a change that fails leaves the shared transaction as it was. Where
// writing itself fails, it panics, and the transaction starts again without it.
func (st *spaceTxn) apply(in *intent) outcome {
	olds := make([]recordHeader, len(in.puts))
	conflict := false
	for i := range in.puts {
		p := &in.puts[i]
		u, err := st.sub(classRecords, p.kind, false)
		if err != nil {
			return outcome{err: err}
		}
		var old []byte
		if u != nil {
			old = u.b.Get(p.id)
		}
		if old != nil {
			if olds[i], err = openRecord(old, p.kind, string(p.id)); err != nil {
				return outcome{err: err}
			}
			if olds[i].version == in.id {
				return outcome{state: st.head.state, now: st.t.now} // done before
			}
		}
		if olds[i].version != p.expect {
			conflict = true
		} else if old != nil && string(old[sizeRecord:min(p.selectors, len(old))]) != string(p.value[sizeRecord:p.selectors]) {
			return outcome{err: fmt.Errorf("%w: subject, client, grant, token and type of %s/%q are fixed for its life", store.ErrInvalid, p.kind, p.id)}
		}
	}
	switch {
	case st.head.readOnly:
		return outcome{err: store.ErrReadOnly}
	case conflict:
		return outcome{err: store.ErrConflict}
	}
	for i := range in.puts {
		if err := st.write(&in.puts[i], &olds[i]); err != nil {
			panic(err)
		}
	}
	if len(in.events) > 0 {
		u, err := st.sub(classEvents, "", true)
		if err != nil {
			panic(err)
		}
		for _, value := range in.events {
			key := key64(st.next())
			stampEvent(value, key, st.t.now)
			if err := st.put(u, key, value); err != nil {
				panic(err)
			}
			st.head.digest.events.add(eventHash(num64(key), value))
			st.head.loose++
		}
	}
	return outcome{state: st.head.state, now: st.t.now}
}

func (st *spaceTxn) write(p *intentPut, old *recordHeader) error {
	isNew := old.version == store.Version{}
	var pos int64
	if p.kind.State() {
		order, err := st.sub(classOrder, "", true)
		if err != nil {
			return err
		}
		entry := orderEntry(p.kind, p.id)
		if old.pos != 0 {
			if err := st.del(order, key64(old.pos)); err != nil {
				return err
			}
			st.head.digest.order.remove(orderHash(old.pos, entry))
		}
		pos = st.next()
		st.head.state, st.moved = pos, true
		st.head.digest.order.add(orderHash(pos, entry))
		if err := st.put(order, key64(pos), entry); err != nil {
			return err
		}
	}

	born, due := old.bornAt, old.due
	if isNew && (p.indexed || p.expires > 0) {
		tail, err := st.sub(classTail, p.kind, true)
		if err != nil {
			return err
		}
		born, due = st.next(), p.expires
		key := key64(born)
		if err := st.put(tail, key, sealValue(p.tail, key)); err != nil {
			return err
		}
		if err := st.countTail(p.kind, tail, 1); err != nil {
			return err
		}
	} else if p.expires > 0 && (due == 0 || p.expires < due) {
		// Otherwise the expiry index stays, a lower bound: moving it at each rotation costs 40 %.
		if err := st.moveDue(p.kind, p.id, born, due, p.expires); err != nil {
			return err
		}
		due = p.expires
	}

	u, err := st.sub(classRecords, p.kind, true)
	if err != nil {
		return err
	}
	stampRecord(p.value, p.kind, string(p.id), st.t.now, pos, due, born)
	t := st.head.digest.of(p.kind)
	if isNew {
		st.scatter(u, p.kind, p.id)
	} else {
		t.remove(recordHash(p.kind, p.id, old))
	}
	t.add(recordHash(p.kind, p.id, &recordHeader{version: version(p.value), pos: pos}))
	return st.put(u, p.id, p.value)
}

// moveDue puts a record's entry of the expiry index at another time, 0 being none. A record in the tail has no entry yet.
func (st *spaceTxn) moveDue(kind store.Kind, id []byte, born, from, to int64) error {
	if born != 0 {
		tail, err := st.sub(classTail, kind, true)
		if err != nil || tail.b.Get(key64(born)) != nil {
			return err
		}
	}
	x, err := st.sub(classDue, kind, true)
	if err != nil {
		return err
	}
	if from > 0 {
		if err := st.del(x, dueKey(from, id)); err != nil {
			return err
		}
	}
	if to > 0 {
		return st.put(x, dueKey(to, id), nil)
	}
	return nil
}

// version of an encoded record.
func version(value []byte) store.Version { return store.Version(value[offVersion:offWritten]) }

func dueKey(due int64, id []byte) []byte {
	b := make([]byte, 8, 8+len(id))
	copy(b, key64(due))
	return append(b, id...)
}
