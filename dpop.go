package apitoken

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/apitoken-go/apitoken/internal/jws"
	"github.com/apitoken-go/apitoken/internal/keyring"
)

// DPoP proofs (RFC 9449). A proof says: whoever sends this request holds this key, now. It is good once. Next to a
// token the memory of the process says so, because a resource server reads no store for it; at the endpoints that
// issue tokens the store does, for all processes.

const (
	maxProofBytes = 8 << 10
	proofAge      = 60 * time.Second // of iat, back from now
	nonceAge      = 5 * time.Minute  // of a nonce; iat may then be off by as much
	maxProofs     = 1 << 18          // proofs that a process remembers, about 100 bytes each
	proofShards   = 8
)

// dpopProof is a proof whose form and signature were verified.
type dpopProof struct {
	print string // RFC 7638 thumbprint of its key
	jti   string
	nonce string
	iat   int64
}

func badProof(detail string, cause error) *Error {
	return &Error{Code: ErrInvalidProof, Detail: detail, Cause: cause}
}

// readProof checks all of RFC 9449 §4.3 but time, nonce and single use. token is the access token that it came with, or "".
func readProof(proof, method, target, token string) (p dpopProof, _ *Error) {
	var t jws.Token
	if err := jws.ParseProof(proof, maxProofBytes, &t); err != nil {
		return p, badProof("malformed", err)
	}
	if !jws.IsType(t.Header.Typ, "dpop+jwt") {
		return p, badProof("typ is not dpop+jwt", nil)
	}
	if t.Header.JWK == "" {
		return p, badProof("no jwk", nil)
	}
	if strings.HasPrefix(t.Header.Alg, "HS") {
		return p, badProof("a symmetric alg", nil)
	}
	key, err := jws.ParseProofKey([]byte(t.Header.JWK), t.Header.Alg)
	if err != nil {
		return p, badProof("jwk", err)
	}
	var claims [4]string
	for i, name := range [...]string{"htm", "htu", "ath", "nonce"} {
		if claims[i], err = t.Text(name); err != nil {
			return p, badProof(name, err)
		}
	}
	htm, htu, ath := claims[0], claims[1], claims[2]
	switch {
	case t.Claims.ID == "" || len(t.Claims.ID) > 255:
		return p, badProof("jti is missing or too long", nil)
	case t.Claims.IssuedAt == 0:
		return p, badProof("iat is missing", nil)
	case htm != method:
		return p, badProof("htm is not the request's method", nil)
	case !sameTarget(htu, target):
		return p, badProof("htu is not the request's URL", nil)
	case token != "" && subtle.ConstantTimeCompare([]byte(ath), []byte(accessHash(token))) != 1:
		return p, badProof("ath is not of this access token", nil)
	}
	if err := key.Verify(t.SigningInput, t.Signature); err != nil {
		return p, badProof("signature", err)
	}
	if p.print, err = jws.Thumbprint(key.Key); err != nil {
		return p, badProof("thumbprint", err)
	}
	p.jti, p.nonce, p.iat = t.Claims.ID, claims[3], t.Claims.IssuedAt
	return p, nil
}

func accessHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sameTarget compares an htu with the URL of a request, without query and fragment, normalized as RFC 3986 §6.2.2 and
// §6.2.3 say and no further: dot segments and doubled slashes are another path.
func sameTarget(htu, target string) bool {
	if htu == target && htu != "" {
		return true
	}
	a, ok1 := normalTarget(htu)
	b, ok2 := normalTarget(target)
	return ok1 && ok2 && a == b
}

func normalTarget(s string) (string, bool) {
	if len(s) > 4096 {
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

// window checks iat; a proof with a live nonce may be off by as much as the nonce lives, which its nonce makes good.
func (p *dpopProof) window(now time.Time, ahead time.Duration, nonced bool) *Error {
	back := proofAge
	if nonced {
		back, ahead = nonceAge, nonceAge
	}
	switch at := time.Unix(p.iat, 0); {
	case now.Sub(at) > back:
		return badProof("iat is too old", nil)
	case at.Sub(now) > ahead:
		return badProof("iat is in the future", nil)
	}
	return nil
}

func (p *dpopProof) mark() [16]byte {
	h := sha256.New()
	h.Write([]byte(p.print))
	h.Write([]byte(p.jti))
	return [16]byte(h.Sum(nil))
}

// A nonce is its time in seconds and a MAC of it, so that nobody has to keep one.
func makeNonce(key []byte, kid [4]byte, sec int64) string {
	var b [28]byte
	copy(b[:4], kid[:])
	binary.BigEndian.PutUint64(b[4:12], uint64(sec))
	m := hmac.New(sha256.New, key)
	m.Write(b[:12])
	copy(b[12:], m.Sum(nil))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// nonceTime is when a nonce was made, if it was by the key that keyOf names.
func nonceTime(nonce string, keyOf func(kid [4]byte) ([]byte, bool)) (int64, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(nonce)
	if err != nil || len(b) != 28 {
		return 0, false
	}
	kid := [4]byte(b)
	key, ok := keyOf(kid)
	if !ok {
		return 0, false
	}
	sec := int64(binary.BigEndian.Uint64(b[4:12]))
	want := makeNonce(key, kid, sec)
	return sec, subtle.ConstantTimeCompare([]byte(want), []byte(nonce)) == 1
}

// proofBook remembers the proofs that this process has seen for as long as they could come again. Nonces count by the
// process's own clock, which never goes back, under a key that ends with it: a proof with one is good once, whatever
// the wall clock does. When it is full it forgets the oldest and asks whatever is as old for a nonce.
type proofBook struct {
	key     []byte
	began   time.Time
	require bool
	ahead   time.Duration // how far iat may be in the future
	shards  [proofShards]proofShard
}

type proofShard struct {
	mu     sync.Mutex
	wall   proofWindow // of proofs without a nonce, by iat
	nonced proofWindow // by the nonce's time
}

// proofWindow holds marks by the second that they count from.
type proofWindow struct {
	seen  map[[16]byte]struct{}
	marks map[int64][][16]byte
	swept int64
	floor int64 // marks up to this second were forgotten
}

func newProofBook(require bool, ahead time.Duration) *proofBook {
	key := make([]byte, 32)
	rand.Read(key)
	return &proofBook{key: key, began: time.Now(), require: require, ahead: ahead}
}

func (b *proofBook) keyOf(kid [4]byte) ([]byte, bool) { return b.key, kid == [4]byte{} }

// elapsed counts from 1, so that 0 is before all.
func (b *proofBook) elapsed() int64 { return int64(time.Since(b.began)/time.Second) + 1 }

func (b *proofBook) useNonce(detail string) *Error {
	return &Error{Code: ErrUseNonce, Detail: detail, Nonce: makeNonce(b.key, [4]byte{}, b.elapsed())}
}

// check takes the proof of c once, for a token that is bound to binding. Without spend it only says what it would answer.
func (b *proofBook) check(c *Credential, binding string, now time.Time, spend bool) *Error {
	p, err := readProof(c.DPoP, c.Method, c.URL, c.Token)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare([]byte(BindDPoP(p.print)), []byte(binding)) != 1 {
		return badProof("the proof is of another key than the token's", nil)
	}
	at, nonced := nonceTime(p.nonce, b.keyOf)
	elapsed := b.elapsed()
	if nonced && elapsed-at > int64(nonceAge/time.Second) {
		return b.useNonce("the nonce has expired")
	}
	if b.require && !nonced {
		return b.useNonce("no nonce of this process")
	}
	if err := p.window(now, b.ahead, nonced); err != nil {
		return err
	}
	mark := p.mark()
	s := &b.shards[mark[0]%proofShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	var fresh, known bool
	switch {
	case !spend && nonced:
		fresh, known = s.nonced.has(mark, at)
	case !spend:
		fresh, known = s.wall.has(mark, p.iat)
	case nonced:
		fresh, known = s.nonced.add(mark, at, elapsed-int64(nonceAge/time.Second)-1)
	default:
		fresh, known = s.wall.add(mark, p.iat, now.Add(-proofAge).Unix()-1)
	}
	switch {
	case !known:
		return b.useNonce("older than what this process remembers")
	case !fresh:
		return badProof("seen before", nil)
	}
	return nil
}

// add notes a mark of the second at; fresh: it was not there; known: what is not there was never there. Marks before
// oldest can not come again and are forgotten.
func (w *proofWindow) add(mark [16]byte, at, oldest int64) (fresh, known bool) {
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
	if len(w.seen) >= maxProofs/proofShards {
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

// has is add's answer as far as it is known without adding.
func (w *proofWindow) has(mark [16]byte, at int64) (fresh, known bool) {
	if _, ok := w.seen[mark]; ok {
		return false, true
	}
	return at > w.floor, at > w.floor
}

func (w *proofWindow) forget(sec int64) {
	for _, m := range w.marks[sec] {
		delete(w.seen, m)
	}
	delete(w.marks, sec)
	w.floor = max(w.floor, sec)
}

// Proof is a DPoP proof at an endpoint that issues tokens, where it comes without an access token (RFC 9449 §5).
type Proof struct {
	JWT          string
	Method, URL  string // of the request, URL as clients see it
	RequireNonce bool   // refuse it without a nonce of this service, see Service.ProofNonce
}

// Format keeps the proof out of logs.
func (p Proof) Format(f fmt.State, _ rune) { io.WriteString(f, redacted) }

// LogValue implements slog.LogValuer.
func (p Proof) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText makes JSON and other encodings hold "[redacted]".
func (p Proof) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// Prove verifies p and returns the Binding of its key, for Request, RefreshRequest and Redemption. A proof is taken once
// in all processes on the store. ErrInvalidProof; ErrUseNonce, with the nonce in Error.Nonce; ErrUnavailable.
func (s *Service) Prove(ctx context.Context, p Proof) (binding string, err error) {
	d, perr := readProof(p.JWT, p.Method, p.URL, "")
	if perr != nil {
		return "", perr
	}
	now := s.now()
	at, nonced := nonceTime(d.nonce, func(kid [4]byte) ([]byte, bool) { return s.SigningKeys.ring.MACFor(kid, keyring.Nonce) })
	if age := now.Unix() - at; nonced && (age > int64(nonceAge/time.Second) || age < -int64(maxSkew/time.Second)) {
		return "", s.useNonce("the nonce has expired")
	}
	if p.RequireNonce && !nonced {
		return "", s.useNonce("no nonce of this service")
	}
	if perr := d.window(now, s.cfg.Validation.ahead(), nonced); perr != nil {
		return "", perr
	}
	err = s.Once(ctx, "dpop\x00"+d.print+"\x00"+d.jti, time.Unix(d.iat, 0).Add(2*nonceAge))
	if errors.Is(err, ErrInvalidRequest) {
		return "", badProof("seen before", nil)
	}
	if err != nil {
		return "", err
	}
	return BindDPoP(d.print), nil
}

func (s *Service) useNonce(detail string) *Error {
	return &Error{Code: ErrUseNonce, Detail: detail, Nonce: s.ProofNonce()}
}

// ProofNonce is a nonce for the next proof at the service's own endpoints (RFC 9449 §8), good for five minutes in every
// process on the store.
func (s *Service) ProofNonce() string {
	kid, key := s.SigningKeys.ring.MAC(keyring.Nonce)
	return makeNonce(key, kid, s.now().Unix())
}
