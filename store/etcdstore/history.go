package etcdstore

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
)

// etcd has no name for "this cluster has lost nothing": a snapshot restored with the old token and addresses has the
// old cluster id. So the store keeps a random id of the history under a key, beside a fingerprint of the cluster as it
// was, and whoever finds that the two cannot belong together puts a new id there, once, by compare-and-swap. Every
// write compares the id along, so nobody writes on under the old one.
//
// What cannot happen in one lineage:
//   - another cluster id
//   - a raft term lower than one that was seen
//   - raft index minus revision getting smaller: each revision takes an entry of the log. A restored snapshot keeps the
//     revision and begins a new log
//   - fewer members left of those that were seen than acknowledged writes need: --force-new-cluster
//   - a linearizable answer with a lower revision than one that this process has seen, or that events were shipped
//     with: data directories put back
type lineage struct {
	id      uint64
	raw     string // id as the key's value
	cluster uint64
	term    uint64
	seen    atomic.Int64 // highest revision of a linearizable answer
}

type header = pb.ResponseHeader

type fingerprint struct {
	cluster, term uint64
	slack         int64 // raft index - revision, no more than it was
	members       []uint64
}

func (f *fingerprint) encode() string {
	b := []byte{1}
	b = binary.BigEndian.AppendUint64(b, f.cluster)
	b = binary.BigEndian.AppendUint64(b, f.term)
	b = binary.BigEndian.AppendUint64(b, uint64(f.slack))
	for _, m := range f.members {
		b = binary.BigEndian.AppendUint64(b, m)
	}
	return string(b)
}

func decodeFingerprint(b []byte) (fingerprint, error) {
	if len(b) < 25 || b[0] != 1 || len(b)%8 != 1 {
		return fingerprint{}, errValue("the cluster's fingerprint does not read")
	}
	f := fingerprint{
		cluster: binary.BigEndian.Uint64(b[1:]), term: binary.BigEndian.Uint64(b[9:]),
		slack: int64(binary.BigEndian.Uint64(b[17:])),
	}
	for b = b[25:]; len(b) > 0; b = b[8:] {
		f.members = append(f.members, binary.BigEndian.Uint64(b))
	}
	return f, nil
}

// survives tells whether the members still there include one of every majority of those that were.
func (f *fingerprint) survives(now []uint64) bool {
	if len(now) == 0 { // not allowed to see them
		return true
	}
	left := 0
	for _, m := range f.members {
		if slices.Contains(now, m) {
			left++
		}
	}
	return 2*left >= len(f.members)
}

// historyOf reads the answer to a get of the history.
func historyOf(r *pb.RangeResponse) (uint64, error) {
	if len(r.Kvs) != 1 || len(r.Kvs[0].Value) != 8 {
		return 0, errValue("the history is gone")
	}
	return binary.BigEndian.Uint64(r.Kvs[0].Value), nil
}

// verify judges an answer that was asked for while the lineage was l and its highest revision seen; errMoved: the
// answer must not be used, the lineage has been checked, ask again.
func (s *Store) verify(ctx context.Context, l *lineage, seen int64, h *header) error {
	if h.ClusterId == l.cluster && h.RaftTerm >= l.term && h.Revision >= seen && s.lineage.Load() == l {
		if h.RaftTerm == l.term {
			l.saw(h.Revision)
			return nil
		}
		// A new leader: usually an election, now and then another cluster's. It is worth a look before the answer
		// is believed, and is remembered.
		if err := s.check(ctx, false); err != nil {
			return err
		}
		if n := s.lineage.Load(); n.id == l.id && h.RaftTerm <= n.term {
			n.saw(h.Revision)
			return nil
		}
		return errMoved
	}
	if s.lineage.Load() == l {
		if err := s.check(ctx, false); err != nil {
			return err
		}
	}
	return errMoved
}

func (l *lineage) saw(r int64) {
	for {
		old := l.seen.Load()
		if r <= old || l.seen.CompareAndSwap(old, r) {
			return
		}
	}
}

// watchLineage looks at the cluster now and then, for processes that ask little.
func (s *Store) watchLineage() {
	t := time.NewTicker(checkEvery)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
			ctx, cancel := context.WithTimeout(s.ctx, s.timeout)
			if err := s.check(ctx, false); err != nil && s.ctx.Err() == nil {
				s.log.Debug("etcdstore: cluster not checked", "error", err)
			}
			cancel()
		}
	}
}

// check compares the cluster with its fingerprint, and begins a new history where it cannot be the same.
func (s *Store) check(ctx context.Context, create bool) error {
	was := s.lineage.Load()
	select {
	case s.checking <- struct{}{}:
		defer func() { <-s.checking }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if now := s.lineage.Load(); now != was {
		return nil // somebody else has just looked
	}
	wait := firstWait
	for {
		attempt, cancel := context.WithTimeout(ctx, s.timeout)
		err := s.checkOnce(attempt, create)
		cancel()
		if err == nil || !errors.Is(err, errMoved) && !passing(err) {
			return err
		}
		if !pause(ctx, s.ctx, &wait) {
			return err
		}
	}
}

func (s *Store) checkOnce(ctx context.Context, create bool) error {
	was, seen := s.lineage.Load(), int64(0)
	if was != nil {
		seen = was.seen.Load()
	}
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	now := fingerprint{}
	ml, err := s.client.MemberList(ctx)
	switch {
	case err == nil:
		for _, m := range ml.Members {
			now.members = append(now.members, m.ID)
		}
		slices.Sort(now.members)
	case codeOf(err) != codes.PermissionDenied && codeOf(err) != codes.Unimplemented:
		return err
	}
	kHistory, kFingerprint := s.prefix+keyHistory, s.prefix+keyFingerprint
	r, err := s.client.Txn(ctx).Then(clientv3.OpGet(kHistory), clientv3.OpGet(kFingerprint)).Commit()
	if err != nil {
		return err
	}
	now.cluster, now.term = r.Header.ClusterId, r.Header.RaftTerm
	if st != nil {
		// The index is of before the revision: no more than the true distance.
		now.slack = int64(st.RaftAppliedIndex) - r.Header.Revision
	}
	hist, fp := r.Responses[0].GetResponseRange().Kvs, r.Responses[1].GetResponseRange().Kvs
	if len(hist) == 0 && len(fp) == 0 {
		if !create && was == nil {
			return errValue("the history is gone")
		}
		return s.begins(ctx, was, nil, &now, "new")
	}
	if len(hist) != 1 || len(hist[0].Value) != 8 || len(fp) != 1 {
		return errValue("the history does not read")
	}
	old, err := decodeFingerprint(fp[0].Value)
	if err != nil {
		return err
	}
	id := binary.BigEndian.Uint64(hist[0].Value)
	lost := ""
	switch {
	case now.cluster != old.cluster:
		lost = "another cluster id"
	case now.term < old.term:
		lost = "the raft term went back"
	// An answer from before the fingerprint was taken says nothing.
	case st != nil && st.Header.Revision >= fp[0].ModRevision && int64(st.RaftIndex)-st.Header.Revision < old.slack:
		lost = "the raft log began anew"
	case !old.survives(now.members):
		lost = "a majority of the members is gone"
	case s.doubt.Load() == id:
		lost = "events of a later revision have been shipped"
	case was != nil && was.id == id && r.Header.Revision < seen:
		lost = "the revision went back"
	}
	if lost != "" {
		return s.begins(ctx, was, hist[0].Value, &now, lost)
	}
	if old.term != now.term || now.members != nil && !slices.Equal(old.members, now.members) {
		// Keep up with elections and members that are replaced one by one.
		now.slack = old.slack
		if now.members == nil {
			now.members = old.members
		}
		_, err := s.client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision(kFingerprint), "=", fp[0].ModRevision)).
			Then(clientv3.OpPut(kFingerprint, now.encode())).Commit()
		if err != nil && was == nil {
			return err
		}
	}
	s.adopt(was, id, &now)
	return nil
}

// begins puts a new history in place of the old one. errMoved: done, or another process was faster; look again.
func (s *Store) begins(ctx context.Context, was *lineage, old []byte, now *fingerprint, why string) error {
	if old != nil || was != nil {
		s.log.Error("etcdstore: the cluster lost its history; acknowledged writes may be missing", "reason", why)
	}
	var raw [8]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return err
	}
	raw[0] |= 0x80 // never zero
	kHistory, kFingerprint := s.prefix+keyHistory, s.prefix+keyFingerprint
	cond := clientv3.Compare(clientv3.CreateRevision(kHistory), "=", 0)
	if old != nil {
		cond = clientv3.Compare(clientv3.Value(kHistory), "=", string(old))
	}
	_, err := s.client.Txn(ctx).If(cond).
		Then(clientv3.OpPut(kHistory, string(raw[:])), clientv3.OpPut(kFingerprint, now.encode())).Commit()
	if err != nil {
		if f, err := fateOf(err); f == refused {
			return err
		}
	}
	return errMoved
}

// adopt makes the lineage known to this process.
func (s *Store) adopt(was *lineage, id uint64, f *fingerprint) {
	if was != nil && was.id == id && was.cluster == f.cluster && was.term == f.term {
		return
	}
	l := &lineage{id: id, raw: string(binary.BigEndian.AppendUint64(nil, id)), cluster: f.cluster, term: f.term}
	if was != nil && was.id == id {
		l.seen.Store(was.seen.Load())
	}
	s.lineage.Store(l)
	if was != nil && was.id != id {
		s.wakeAll()
	}
}

// status asks one member that answers; nil when that is not allowed.
func (s *Store) status(ctx context.Context) (*clientv3.StatusResponse, error) {
	var last error
	all := s.client.Endpoints()
	first := s.answers.Load()
	for i := range all {
		at := first + int64(i)
		e := all[at%int64(len(all))]
		one, cancel := context.WithTimeout(ctx, s.timeout/4+time.Millisecond)
		st, err := s.client.Status(one, e)
		cancel()
		if err == nil {
			s.answers.Store(at % int64(len(all)))
			return st, nil
		}
		if c := codeOf(err); c == codes.PermissionDenied || c == codes.Unimplemented {
			return nil, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		last = err
	}
	return nil, fmt.Errorf("etcdstore: no member answers: %w", last)
}
