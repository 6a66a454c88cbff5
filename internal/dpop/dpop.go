// Package dpop checks DPoP proofs (RFC 9449): that whoever sends a request holds a key, now. It owns the form of proofs,
// the nonces, and the memory of the proofs that one process has taken.
//
// It promises that a Book takes a proof once, for as long as the proof could come again, whatever the wall clock does:
// nonces count by a clock that never goes back, under a key that ends with the process. A full Book forgets the oldest proofs
// and asks for a nonce wherever it can no longer tell whether a proof is new.
//
// A check reads the proof, then the times, then the memory: nothing is remembered of a proof that is refused. Each shard of
// a Book has one lock, held for the maps alone; nothing else is locked meanwhile and there is no I/O.
//
// The root's validators hold a Book for proofs beside tokens. Where tokens are issued the root takes each proof once
// through the store, for all processes, and uses Read, Check and Nonces.
package dpop

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/jws"
)

const (
	maxProofBytes = 8 << 10
	maxID         = 255              // bytes of a jti
	maxTarget     = 4096             // bytes of a URL
	proofAge      = 60 * time.Second // of iat, back from now
	nonceAge      = 5 * time.Minute  // of a nonce; iat may then be off by as much
	nonceAhead    = time.Minute      // between the clocks of processes that share a nonce key
	maxProofs     = 1 << 18          // proofs that a Book remembers, of about 100 bytes each
	shards        = 8
)

// Request is a proof and what it came with.
type Request struct {
	Proof       string
	Method, URL string   // of the request, URL as clients see it
	Token       string   // the access token beside it, or empty
	Algs        []string // by which it may be signed
}

// Proof is a proof whose form and signature were verified.
type Proof struct {
	Thumbprint string // of its key (RFC 7638)
	jti        string
	nonce      string
	iat        int64
	exp, nbf   int64 // 0: it has none, as most
}

func bad(detail string, cause error) *fault.Error {
	return &fault.Error{Code: fault.InvalidProof, Detail: detail, Cause: cause}
}

// Replayed is the error for a proof that was seen before.
func Replayed() *fault.Error { return bad("seen before", nil) }

// Read checks what RFC 9449 §4.3 asks but the time, the nonce and the single use.
func Read(r Request) (p Proof, _ *fault.Error) {
	var t jws.Token
	if err := jws.ParseProof(r.Proof, maxProofBytes, &t); err != nil {
		return p, bad("malformed", err)
	}
	switch {
	case !jws.IsType(t.Header.Typ, "dpop+jwt"):
		return p, bad("typ is not dpop+jwt", nil)
	case t.Header.JWK == "":
		return p, bad("no jwk", nil)
	case !slices.Contains(r.Algs, t.Header.Alg):
		return p, bad("an alg that is not taken here", nil)
	}
	key, err := jws.ParseProofKey([]byte(t.Header.JWK), t.Header.Alg)
	if err != nil {
		return p, bad("jwk", err)
	}

	var claims [4]string
	for i, name := range [...]string{"htm", "htu", "ath", "nonce"} {
		if claims[i], err = t.Text(name); err != nil {
			return p, bad(name, err)
		}
	}
	htm, htu, ath := claims[0], claims[1], claims[2]
	switch {
	case t.Claims.ID == "" || len(t.Claims.ID) > maxID:
		return p, bad("jti is missing or too long", nil)
	case t.Claims.IssuedAt == 0:
		return p, bad("iat is missing", nil)
	case htm != r.Method:
		return p, bad("htm is not the request's method", nil)
	case !sameTarget(htu, r.URL):
		return p, bad("htu is not the request's URL", nil)
	case r.Token != "" && subtle.ConstantTimeCompare([]byte(ath), []byte(accessHash(r.Token))) != 1:
		return p, bad("ath is not of this access token", nil)
	}

	if err := key.Verify(t.SigningInput, t.Signature); err != nil {
		return p, bad("signature", err)
	}
	if p.Thumbprint, err = jws.Thumbprint(key.Key); err != nil {
		return p, bad("thumbprint", err)
	}
	p.jti, p.nonce, p.iat = t.Claims.ID, claims[3], t.Claims.IssuedAt
	p.exp, p.nbf = t.Claims.Expires, t.Claims.NotBefore
	return p, nil
}

func accessHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sameTarget compares an htu with the URL of a request, without query and fragment. Both are normalized as RFC 3986 §6.2.2
// and §6.2.3 say and no further: dot segments and doubled slashes make another path.
func sameTarget(htu, target string) bool {
	if htu == target && htu != "" {
		return true
	}
	a, ok1 := normalTarget(htu)
	b, ok2 := normalTarget(target)
	return ok1 && ok2 && a == b
}

func normalTarget(s string) (string, bool) {
	if len(s) > maxTarget {
		return "", false
	}
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Opaque != "" {
		return "", false
	}
	if strings.Contains(strings.TrimSuffix(u.Host, ":"+u.Port()), ":") && !strings.HasPrefix(u.Host, "[") {
		return "", false // two ports
	}
	scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
	switch scheme {
	case "https":
		host = strings.TrimSuffix(host, ":443")
	case "http":
		host = strings.TrimSuffix(host, ":80")
	default:
		return "", false
	}
	path := u.EscapedPath()
	if path == "" {
		path = "/"
	}
	return scheme + "://" + strings.TrimSuffix(host, ":") + normalEscapes(path), true
}

// normalEscapes decodes escapes of unreserved characters and writes the others in upper case (RFC 3986 §6.2.2).
func normalEscapes(path string) string {
	if !strings.Contains(path, "%") {
		return path
	}
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' || i+2 >= len(path) {
			b.WriteByte(path[i])
			continue
		}
		c := unhex(path[i+1])<<4 | unhex(path[i+2])
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return b.String()
}

func unhex(c byte) byte {
	switch {
	case c >= 'a':
		return c - 'a' + 10
	case c >= 'A':
		return c - 'A' + 10
	}
	return c - '0'
}

// ID names the proof among all proofs, for a memory that outlives the process.
func (p *Proof) ID() string { return "dpop\x00" + p.Thumbprint + "\x00" + p.jti }

// Until is when the proof cannot come again.
func (p *Proof) Until() time.Time { return time.Unix(p.iat, 0).Add(2 * nonceAge) }

func (p *Proof) mark() [16]byte {
	h := sha256.New()
	h.Write([]byte(p.Thumbprint))
	h.Write([]byte(p.jti))
	return [16]byte(h.Sum(nil))
}

// Nonces makes and checks nonces. A nonce is its time in seconds and a MAC of it, so that nobody has to keep one.
type Nonces struct {
	Key    func() (kid [4]byte, key []byte)        // of new nonces
	KeyOf  func(kid [4]byte) (key []byte, ok bool) // of any nonce that may still live
	Second func() int64                            // the clock by which they live
	Whose  string                                  // "process" or "service", for operators
}

// New returns a nonce, good for five minutes.
func (n *Nonces) New() string {
	kid, key := n.Key()
	return makeNonce(kid, key, n.Second())
}

func makeNonce(kid [4]byte, key []byte, second int64) string {
	var b [28]byte
	copy(b[:4], kid[:])
	binary.BigEndian.PutUint64(b[4:12], uint64(second))
	m := hmac.New(sha256.New, key)
	m.Write(b[:12])
	copy(b[12:], m.Sum(nil))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// made is when a nonce was made, if it is one of these.
func (n *Nonces) made(nonce string) (second int64, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(nonce)
	if err != nil || len(b) != 28 {
		return 0, false
	}
	kid := [4]byte(b)
	key, ok := n.KeyOf(kid)
	if !ok {
		return 0, false
	}
	second = int64(binary.BigEndian.Uint64(b[4:12]))
	want := makeNonce(kid, key, second)
	return second, subtle.ConstantTimeCompare([]byte(want), []byte(nonce)) == 1
}

func (n *Nonces) use(detail string) *fault.Error {
	return &fault.Error{Code: fault.UseNonce, Detail: detail, Nonce: n.New()}
}

// Check checks the times of p: iat at now, and ahead by at most ahead; exp and nbf likewise, where it has them. With a nonce that lives, iat may be off by as much as a
// nonce lives, for the nonce shows that the proof is recent. required: a proof without a nonce is refused. nonced is
// false, or at is when the nonce was made.
func (n *Nonces) Check(p *Proof, now time.Time, ahead time.Duration, required bool) (at int64, nonced bool, _ *fault.Error) {
	at, nonced = n.made(p.nonce)
	if age := n.Second() - at; nonced && (age > int64(nonceAge/time.Second) || age < -int64(nonceAhead/time.Second)) {
		return 0, false, n.use("the nonce has expired")
	}
	if required && !nonced {
		return 0, false, n.use("no nonce of this " + n.Whose)
	}

	back := proofAge
	if nonced {
		back, ahead = nonceAge, nonceAge
	}
	switch iat := time.Unix(p.iat, 0); {
	case now.Sub(iat) > back:
		return 0, false, bad("iat is too old", nil)
	case iat.Sub(now) > ahead:
		return 0, false, bad("iat is in the future", nil)
	case p.exp != 0 && now.Sub(time.Unix(p.exp, 0)) >= ahead: // RFC 7519 §4.1.4, by the tolerance of iat
		return 0, false, bad("it has expired", nil)
	case p.nbf != 0 && time.Unix(p.nbf, 0).Sub(now) > ahead:
		return 0, false, bad("nbf is in the future", nil)
	}
	return at, nonced, nil
}

// Book remembers the proofs that this process has taken.
type Book struct {
	nonces  Nonces
	require bool
	ahead   time.Duration
	algs    []string
	shards  [shards]shard
}

type shard struct {
	mu     sync.Mutex // guards both windows
	wall   window     // of proofs without a nonce, by iat
	nonced window     // by the nonce's time
}

// window holds marks by the second that they count from.
type window struct {
	seen  map[[16]byte]struct{}
	marks map[int64][][16]byte
	swept int64
	floor int64 // marks up to this second were forgotten
}

// NewBook returns an empty Book. require: proofs without a nonce of this Book are refused. ahead is how far iat may be in the
// future, algs are by which proofs may be signed.
func NewBook(require bool, ahead time.Duration, algs []string) *Book {
	key := make([]byte, 32)
	rand.Read(key)
	began := time.Now()
	return &Book{require: require, ahead: ahead, algs: algs, nonces: Nonces{
		Key:    func() ([4]byte, []byte) { return [4]byte{}, key },
		KeyOf:  func(kid [4]byte) ([]byte, bool) { return key, kid == [4]byte{} },
		Second: func() int64 { return int64(time.Since(began)/time.Second) + 1 }, // from 1, so that 0 is before all
		Whose:  "process",
	}}
}

// Check takes the proof of r, which must be of the key with this thumbprint. Without spend it only says what it would
// answer. fault.InvalidProof; fault.UseNonce, with a nonce.
func (b *Book) Check(r Request, thumbprint string, now time.Time, spend bool) *fault.Error {
	r.Algs = b.algs
	p, err := Read(r)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(p.Thumbprint), []byte(thumbprint)) != 1 {
		return bad("the proof is of another key than the token's", nil)
	}
	at, nonced, err := b.nonces.Check(&p, now, b.ahead, b.require)
	if err != nil {
		return err
	}

	mark := p.mark()
	s := &b.shards[mark[0]%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	w, oldest := &s.wall, now.Add(-proofAge).Unix()-1
	if nonced {
		w, oldest = &s.nonced, b.nonces.Second()-int64(nonceAge/time.Second)-1
	} else {
		at = p.iat
	}
	var fresh, known bool
	if spend {
		fresh, known = w.add(mark, at, oldest)
	} else {
		fresh, known = w.has(mark, at)
	}
	switch {
	case !known:
		return b.nonces.use("older than what this process remembers")
	case !fresh:
		return Replayed()
	}
	return nil
}

// add notes a mark of the second at. fresh: it was not there. known: had it been noted before, it would still be there.
// Marks before oldest cannot come again and are forgotten.
func (w *window) add(mark [16]byte, at, oldest int64) (fresh, known bool) {
	if w.seen == nil {
		w.seen, w.marks = map[[16]byte]struct{}{}, map[int64][][16]byte{}
	}
	if oldest != w.swept {
		w.swept = oldest
		for sec := range w.marks {
			if sec < oldest {
				w.forget(sec)
			}
		}
	}
	if _, ok := w.seen[mark]; ok {
		return false, true
	}
	if at <= w.floor {
		return false, false
	}
	if len(w.seen) >= maxProofs/shards {
		first := at
		for sec := range w.marks {
			first = min(first, sec)
		}
		w.forget(first)
		if at <= w.floor {
			return false, false
		}
	}
	w.seen[mark] = struct{}{}
	w.marks[at] = append(w.marks[at], mark)
	return true, true
}

// has is what add would answer, as far as that is known without adding.
func (w *window) has(mark [16]byte, at int64) (fresh, known bool) {
	if _, ok := w.seen[mark]; ok {
		return false, true
	}
	return at > w.floor, at > w.floor
}

func (w *window) forget(sec int64) {
	for _, m := range w.marks[sec] {
		delete(w.seen, m)
	}
	delete(w.marks, sec)
	w.floor = max(w.floor, sec)
}
