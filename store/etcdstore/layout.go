package etcdstore

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/url"
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

// The keys, below the prefix of Options. NS is a namespace (empty: the default one), which has no slash.
//
//	history              id of the history, 8 bytes
//	fingerprint          what tells this cluster from one that lost writes
//	clock                time up to which purging is believed
//	shipper              claim of the process that ships the outbox, under a lease
//	h/NS                 position of the last state change, 8 bytes
//	e/NS/EPOCH/CHANGE    events of one change, with its number among those of its revision; see place
//	w/NS/EPOCH/CHANGE/N  weights: one for each 4 KiB of events beyond the first KiB, so that counting keys bounds bytes
//	n/NS/epoch           the epoch that new events go to, 8 bytes
//	n/NS/fence           exists while the namespace takes no writes
//	n/NS/trimmed         highest place of a purged event, 8 bytes
//	n/NS/r/KIND/ID       record
//	n/NS/o/POS           state record once more, in the order of state
//	n/NS/i/KIND/FvID     index: F the selector, v a hash of its value
//	n/NS/d/KIND/TIME+ID  index: no later than the record's expiry
const (
	keyHistory     = "history"
	keyFingerprint = "fingerprint"
	keyClock       = "clock"
	keyShipper     = "shipper"
)

func hex64(n int64) string { return fmt.Sprintf("%016x", uint64(n)) }

func parseHex64(s string) (int64, bool) {
	if len(s) < 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(s[:16], 16, 63)
	return int64(n), err == nil
}

// be64 orders non-negative numbers bytewise, so that etcd can compare them.
func be64(n int64) string { return string(binary.BigEndian.AppendUint64(nil, uint64(n))) }

func parse64(b []byte) (int64, error) {
	if len(b) != 8 || b[0] >= 0x80 {
		return 0, errValue("a number has not 8 bytes")
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}

// keys are the key prefixes of one namespace.
type keys struct {
	head, epoch, fence, trimmed string
	events, weights             string
	order                       string
	base                        string
}

func newKeys(prefix, ns string) keys {
	base := prefix + "n/" + ns + "/"
	return keys{
		head: prefix + "h/" + ns, epoch: base + "epoch", fence: base + "fence", trimmed: base + "trimmed",
		events: prefix + "e/" + ns + "/", weights: prefix + "w/" + ns + "/",
		order: base + "o/", base: base,
	}
}

func (k *keys) records(kind store.Kind) string {
	return k.base + "r/" + url.PathEscape(string(kind)) + "/"
}

func (k *keys) record(kind store.Kind, id string) string { return k.records(kind) + id }

func (k *keys) dues(kind store.Kind) string {
	return k.base + "d/" + url.PathEscape(string(kind)) + "/"
}

func (k *keys) due(kind store.Kind, at int64, id string) string { return k.dues(kind) + hex64(at) + id }

func (k *keys) at(n int64) string { return k.order + hex64(n) }

func (k *keys) inEpoch(epoch int64) string { return k.events + hex64(epoch) + "/" }

func (k *keys) event(epoch int64, change store.Version, seq int) string {
	return k.inEpoch(epoch) + fmt.Sprintf("%x%02x", change[:], seq)
}

// seqOf reads a change's number in its revision from the key of its events.
func seqOf(key string) (int64, bool) {
	if len(key) < 2 {
		return 0, false
	}
	n, err := strconv.ParseUint(key[len(key)-2:], 16, 8)
	return int64(n), err == nil && n < groupSize
}

// place is where an event stands in the order of commits: the revision, and its number among the events of it.
func place(rev, number int64) int64 { return rev<<placeBits | number }

// placeBits hold a number: groupSize changes of store.MaxEvents each.
const placeBits = 9

// weightsOf is the prefix of an event entry's weights.
func (k *keys) weightsOf(entry string) string {
	return k.weights + strings.TrimPrefix(entry, k.events) + "/"
}

// index is the prefix of the index entries for one value of one selector.
func (k *keys) index(kind store.Kind, selector byte, value string) string {
	sum := sha256.Sum256([]byte(value))
	return k.base + "i/" + url.PathEscape(string(kind)) + "/" + string(selector) + string(sum[:16])
}

// indexes are the index keys of a record. Type has none: it rarely selects few.
func (k *keys) indexes(r *store.Record) []string {
	var out []string
	for _, s := range [...]struct {
		name  byte
		value string
	}{{'s', r.Subject}, {'c', r.Client}, {'g', r.Grant}, {'t', r.Token}} {
		if s.value != "" {
			out = append(out, k.index(r.Kind, s.name, s.value)+r.ID)
		}
	}
	return out
}

// narrowest is the index prefix to read for q, if there is one.
func (k *keys) narrowest(q *store.Query) (string, bool) {
	switch {
	case q.Token != "":
		return k.index(q.Kind, 't', q.Token), true
	case q.Grant != "":
		return k.index(q.Kind, 'g', q.Grant), true
	case q.Subject != "":
		return k.index(q.Kind, 's', q.Subject), true
	case q.Client != "":
		return k.index(q.Kind, 'c', q.Client), true
	}
	return "", false
}

// dueAt is where a record that expires then stands in the expiry index: earlier, by less than half of the time that it
// has left. A grant whose expiry slides with each use so finds its index entry there already, and leaves a handful
// behind over its life, not one for each use.
func dueAt(expires, now int64) int64 {
	left := expires - now
	if left < 4 {
		return expires
	}
	step := int64(1) << (bits.Len64(uint64(left/2)) - 1)
	return expires &^ (step - 1)
}
