package ledger

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken"
	"github.com/apitoken-go/apitoken/event"
)

// Leaf is one record of the log: an event and its position. Where the ledger has a [Vault], what concerns a person is
// sealed: Event lacks it, and a reference stands for each person.
type Leaf struct {
	Pos   int64 // 0 is the first
	Event apitoken.Event

	// Random pseudonyms of the event's subject and actor, and of a third one: who acts by a token that was exchanged, or the
	// address that the event came from, where it has no subject and nobody else or an alert tells of it. They stay the same
	// from event to event until [Vault.Erase].
	SubjectRef, ActorRef, OriginRef string
	// AES-256-GCM: Sealed under the keys of all persons of the event at once, so that it ends with whichever of them is
	// erased first; SealedSubject and SealedActor under that person's alone.
	Sealed, SealedSubject, SealedActor []byte
}

// MaxLeafBytes is the longest line of a log, its newline included.
const MaxLeafBytes = 64 << 10

const leafTime = "2006-01-02T15:04:05.000Z"

// AppendText appends the one encoding of l, a line of JSON without its newline. Members stand in a fixed order, without
// white space, and only when they are set; a string escapes quote, backslash and what is below U+0020, the
// latter as \u00xx in lower case, and nothing else. Times are UTC in ms. It fails for what would not read back.
func (l *Leaf) AppendText(b []byte) ([]byte, error) {
	start := len(b)
	e := &l.Event
	b = append(b, `{"v":1,"pos":`...)
	b = strconv.AppendInt(b, l.Pos, 10)
	b = append(b, `,"id":`...)
	b = appendString(b, e.ID)
	b = append(b, `,"time":"`...)
	b = e.Time.UTC().AppendFormat(b, leafTime)
	b = append(b, `","type":`...)
	b = appendString(b, string(e.Type))
	b = append(b, `,"ok":`...)
	b = strconv.AppendBool(b, e.OK)
	text := func(name, v string) {
		if v != "" {
			b = append(append(append(b, `,"`...), name...), `":`...)
			b = appendString(b, v)
		}
	}
	text("reason", e.Reason)
	text("actor", e.Actor)
	text("actor_issuer", e.ActorIssuer)
	text("subject", e.Subject)
	text("issuer", e.Issuer)
	text("client", e.Client)
	text("token_id", e.TokenID)
	text("grant", e.Grant)
	text("target", e.Target.String())
	if len(e.Scopes) > 0 {
		b = append(b, `,"scopes":`...)
		for i, s := range e.Scopes {
			b = append(b, "[,"[min(i, 1)])
			b = appendString(b, string(s))
		}
		b = append(b, ']')
	}
	if e.Count != 0 {
		b = append(b, `,"count":`...)
		b = strconv.AppendInt(b, int64(e.Count), 10)
	}
	if e.Address.IsValid() {
		text("address", e.Address.WithZone("").String())
	}
	text("user_agent", e.UserAgent)
	text("request_id", e.RequestID)
	if len(e.Extra) > 0 {
		b = append(b, `,"extra":`...)
		for i, name := range slices.Sorted(maps.Keys(e.Extra)) {
			b = append(b, "{,"[min(i, 1)])
			b = append(appendString(b, name), ':')
			b = appendString(b, e.Extra[name])
		}
		b = append(b, '}')
	}
	text("subject_ref", l.SubjectRef)
	text("actor_ref", l.ActorRef)
	text("origin_ref", l.OriginRef)
	blob := func(name string, v []byte) {
		if len(v) > 0 {
			b = append(append(append(b, `,"`...), name...), `":"`...)
			b = base64.RawURLEncoding.AppendEncode(b, v)
			b = append(b, '"')
		}
	}
	blob("sealed", l.Sealed)
	blob("sealed_subject", l.SealedSubject)
	blob("sealed_actor", l.SealedActor)
	b = append(b, '}')
	if _, err := readLeaf(string(b[start:])); err != nil {
		return b[:start], fmt.Errorf("event %.64q cannot be a record of the log: %w", e.ID, err)
	}
	return b, nil
}

const hexDigits = "0123456789abcdef"

// appendString appends the one encoding of s; what is not UTF-8 becomes U+FFFD.
func appendString(b []byte, s string) []byte {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	b = append(b, '"')
	from := 0
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' {
			b = append(b, s[from:i]...)
			if from = i + 1; c >= 0x20 {
				b = append(b, '\\', c)
			} else {
				b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
		}
	}
	return append(append(b, s[from:]...), '"')
}

// ParseLeaf reads a line, without its newline, and takes only what [Leaf.AppendText] makes: no event has two encodings.
func ParseLeaf(line []byte) (Leaf, error) {
	return readLeaf(string(line))
}

var errNotCanonical = errors.New("not the one encoding of a record")

// leafReader goes through a line. The first thing that does not stand where it must ends it.
type leafReader struct {
	rest string
	bad  bool
}

func readLeaf(line string) (l Leaf, err error) {
	if len(line) >= MaxLeafBytes {
		return l, fmt.Errorf("a record of %d bytes; the limit is %d with its newline", len(line), MaxLeafBytes)
	}
	r := leafReader{rest: line}
	e := &l.Event
	r.need(`{"v":1,"pos":`)
	l.Pos = r.number()
	r.need(`,"id":`)
	e.ID = r.text()
	r.need(`,"time":"`)
	e.Time = r.time()
	r.need(`,"type":`)
	e.Type = event.Type(r.text())
	r.need(`,"ok":`)
	if e.OK = r.has("true"); !e.OK {
		r.need("false")
	}
	e.Reason = r.member(`,"reason":`)
	e.Actor = r.member(`,"actor":`)
	e.ActorIssuer = r.member(`,"actor_issuer":`)
	e.Subject = r.member(`,"subject":`)
	e.Issuer = r.member(`,"issuer":`)
	e.Client = r.member(`,"client":`)
	e.TokenID = r.member(`,"token_id":`)
	e.Grant = r.member(`,"grant":`)
	if target := r.member(`,"target":`); target != "" {
		if e.Target.UnmarshalText([]byte(target)) != nil || e.Target.String() != target {
			r.bad = true
		}
	}
	if r.has(`,"scopes":[`) {
		for {
			e.Scopes = append(e.Scopes, apitoken.Scope(r.text()))
			if r.bad || !r.has(",") {
				break
			}
		}
		r.need("]")
	}
	if r.has(`,"count":`) {
		minus := r.has("-")
		n := r.number()
		if minus {
			n = -n
		}
		e.Count = int(n)
		r.bad = r.bad || n == 0 || int64(e.Count) != n
	}
	if address := r.member(`,"address":`); address != "" {
		a, err := netip.ParseAddr(address)
		e.Address = a
		r.bad = r.bad || err != nil || a.Zone() != "" || a.String() != address
	}
	e.UserAgent = r.member(`,"user_agent":`)
	e.RequestID = r.member(`,"request_id":`)
	if r.has(`,"extra":{`) {
		e.Extra = map[string]string{}
		for last, first := "", true; ; first = false {
			name := r.text()
			r.need(":")
			e.Extra[name] = r.text()
			if !first && name <= last {
				r.bad = true // twice, or out of order
			}
			if last = name; r.bad || !r.has(",") {
				break
			}
		}
		r.need("}")
	}
	l.SubjectRef = r.member(`,"subject_ref":`)
	l.ActorRef = r.member(`,"actor_ref":`)
	l.OriginRef = r.member(`,"origin_ref":`)
	l.Sealed = r.blob(`,"sealed":`)
	l.SealedSubject = r.blob(`,"sealed_subject":`)
	l.SealedActor = r.blob(`,"sealed_actor":`)
	r.need("}")
	switch {
	case r.bad || r.rest != "":
		return Leaf{}, fmt.Errorf("%w, from byte %d on", errNotCanonical, len(line)-len(r.rest))
	case e.ID == "" || e.Type == "":
		return Leaf{}, fmt.Errorf("%w: no id, or no type", errNotCanonical)
	}
	return l, nil
}

// has passes over s, if it is next.
func (r *leafReader) has(s string) bool {
	if r.bad || !strings.HasPrefix(r.rest, s) {
		return false
	}
	r.rest = r.rest[len(s):]
	return true
}

func (r *leafReader) need(s string) {
	if !r.has(s) {
		r.bad = true
	}
}

// number reads 0, or digits without a leading zero, up to 2^53: every JSON reader keeps those exact.
func (r *leafReader) number() int64 {
	i := 0
	var n int64
	for i < len(r.rest) && r.rest[i] >= '0' && r.rest[i] <= '9' && i < 17 {
		n = n*10 + int64(r.rest[i]-'0')
		i++
	}
	if r.bad || i == 0 || i > 1 && r.rest[0] == '0' || n > 1<<53 {
		r.bad = true
		return 0
	}
	r.rest = r.rest[i:]
	return n
}

func (r *leafReader) time() time.Time {
	n := len(leafTime)
	if r.bad || len(r.rest) <= n || r.rest[n] != '"' {
		r.bad = true
		return time.Time{}
	}
	for i := range n { // of this shape there is one text for each time
		c, want := r.rest[i], leafTime[i]
		if want >= '0' && want <= '9' {
			r.bad = r.bad || c < '0' || c > '9'
		} else {
			r.bad = r.bad || c != want
		}
	}
	t, err := time.Parse(time.RFC3339Nano, r.rest[:n])
	if err != nil || r.bad {
		r.bad = true
		return time.Time{}
	}
	r.rest = r.rest[n+1:]
	return t.UTC()
}

// text reads a string. Without escapes it is a part of the line.
func (r *leafReader) text() string {
	r.need(`"`)
	if r.bad {
		return ""
	}
	for i := 0; i < len(r.rest); i++ {
		switch c := r.rest[i]; {
		case c == '"':
			s := r.rest[:i]
			r.bad = !utf8.ValidString(s)
			r.rest = r.rest[i+1:]
			return s
		case c == '\\':
			return r.escaped(i)
		case c < 0x20:
			r.bad = true
			return ""
		}
	}
	r.bad = true
	return ""
}

// escaped reads a string whose first escape is at i.
func (r *leafReader) escaped(i int) string {
	out := []byte(r.rest[:i])
	for i < len(r.rest) {
		c := r.rest[i]
		i++
		switch {
		case c == '"':
			r.bad = !utf8.Valid(out)
			r.rest = r.rest[i:]
			return string(out)
		case c < 0x20:
			r.bad = true
			return ""
		case c != '\\':
			out = append(out, c)
			continue
		}
		next := r.rest[i:]
		switch {
		case next != "" && (next[0] == '"' || next[0] == '\\'):
			out = append(out, next[0])
			i++
		case len(next) >= 5 && next[:3] == "u00" && (next[3] == '0' || next[3] == '1') && strings.IndexByte(hexDigits, next[4]) >= 0:
			out = append(out, (next[3]-'0')<<4|byte(strings.IndexByte(hexDigits, next[4])))
			i += 5
		default:
			r.bad = true
			return ""
		}
	}
	r.bad = true
	return ""
}

// member reads a string that is not there, or not empty.
func (r *leafReader) member(name string) string {
	if !r.has(name) {
		return ""
	}
	s := r.text()
	r.bad = r.bad || s == ""
	return s
}

func (r *leafReader) blob(name string) []byte {
	s := r.member(name)
	if s == "" {
		return nil
	}
	// Strict refuses set bits behind the end, not line ends inside: those are no base64url digits.
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	r.bad = r.bad || err != nil || strings.ContainsAny(s, "\r\n")
	return b
}
