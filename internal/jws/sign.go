// Signing, with keys here or elsewhere.

package jws

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/apitoken-go/apitoken/internal/hook"
)

// ContextSigner is what a signer outside the process may implement, so that a deadline reaches it. The arguments are
// those of crypto.Signer.
type ContextSigner interface {
	SignContext(ctx context.Context, rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error)
}

// Signer makes tokens with one key under one algorithm.
type Signer struct {
	Public *PublicKey
	signer crypto.Signer
	secret []byte // HS256
	remote bool
	places chan struct{} // of calls that run, for a key outside
	access string        // header and dot of an access token
	answer string        // the same of a signed introspection response (RFC 9701)
}

// maxRemote bounds the calls of one key outside that run at once: one that hangs must not gather goroutines.
const maxRemote = 256

// NewSigner prepares a key: a crypto.Signer, of whatever concrete type, or the bytes of an HS256 secret. remote says
// that it lives outside the process: it is given a deadline, and what it answers is verified.
func NewSigner(kid, alg string, key any, remote bool) (*Signer, error) {
	s := &Signer{remote: remote}
	if remote {
		s.places = make(chan struct{}, maxRemote)
	}
	var err error
	switch key := key.(type) {
	case []byte:
		s.secret = key
		s.Public, err = NewPublicKey(kid, alg, key)
	case crypto.Signer:
		s.signer = key
		pub := key.Public()
		if p, ok := pub.(*ed25519.PublicKey); ok && p != nil { // some agents answer a pointer
			pub = *p
		}
		if kid == "" {
			if kid, err = Thumbprint(pub); err != nil {
				return nil, fmt.Errorf("jws: no thumbprint of a %T: %w", pub, err)
			}
		}
		s.Public, err = NewPublicKey(kid, alg, pub)
	default:
		return nil, fmt.Errorf("jws: a %T does not sign", key)
	}
	if err != nil {
		return nil, err
	}
	if len(kid) > maxKID || !utf8.ValidString(kid) {
		return nil, errors.New("jws: a kid that Parse would not take")
	}
	prefix := func(typ string) string {
		h := append([]byte(`{"alg":"`+s.Public.Alg+`","kid":`), appendText(nil, kid)...)
		h = append(h, `,"typ":"`+typ+`"}`...)
		return base64.RawURLEncoding.EncodeToString(h) + "."
	}
	s.access, s.answer = prefix(AccessType), prefix(AnswerType)
	return s, nil
}

// What a Signer makes.
const (
	AccessType = "at+jwt"                  // access tokens (RFC 9068 §2.1)
	AnswerType = "token-introspection+jwt" // answers to introspection (RFC 9701 §5)
)

// Sign makes a token of the given typ from a JSON payload.
func (s *Signer) Sign(ctx context.Context, typ string, payload []byte) (string, error) {
	var prefix string
	switch typ {
	case AccessType:
		prefix = s.access
	case AnswerType:
		prefix = s.answer
	default:
		return "", errors.New("jws: a typ that this signer does not make")
	}
	return s.sign(ctx, prefix, payload)
}

// sign makes a token of a header, with its dot, and a payload.
func (s *Signer) sign(ctx context.Context, prefix string, payload []byte) (string, error) {
	enc := base64.RawURLEncoding
	n := len(prefix) + enc.EncodedLen(len(payload))
	out := make([]byte, n, n+1+enc.EncodedLen(s.Public.sigSize))
	copy(out, prefix)
	enc.Encode(out[len(prefix):], payload)
	var room [maxECDSA]byte
	sig, err := s.raw(ctx, out, room[:0])
	if err != nil {
		return "", err
	}
	if s.remote {
		if err := s.Public.Verify(asString(out), sig); err != nil {
			return "", errors.New("jws: the signer outside answered a signature that does not verify")
		}
	}
	out = append(out, '.')
	return asString(enc.AppendEncode(out, sig)), nil
}

// raw signs input. The signature may be in the memory of room.
func (s *Signer) raw(ctx context.Context, input, room []byte) ([]byte, error) {
	if key := s.local(); key != nil {
		return methods[s.Public.Alg].Sign(asString(input), key)
	}
	var msg []byte
	opts := crypto.SignerOpts(crypto.Hash(0))
	switch s.Public.Alg {
	case "EdDSA":
		msg = input
	default:
		msg = digest(make([]byte, 0, sha512.Size), s.Public.Alg, asString(input))
		h := hashOf(s.Public.Alg)
		opts = h
		if s.Public.Alg[0] == 'P' {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
		}
	}
	sig, err := s.call(ctx, msg, opts)
	if err != nil {
		return nil, err
	}
	if _, ok := s.Public.Key.(*ecdsa.PublicKey); ok {
		return fixedWidth(room, sig, s.Public.sigSize/2)
	}
	if len(sig) != s.Public.sigSize {
		return nil, errors.New("jws: the signature has the wrong size")
	}
	return sig, nil
}

// local is a key that jwt/v5 signs with: what is outside, or of somebody's own type, is asked by crypto.Signer.
func (s *Signer) local() any {
	if s.secret != nil {
		return s.secret
	}
	if s.remote {
		return nil
	}
	switch s.signer.(type) {
	case *ecdsa.PrivateKey, *rsa.PrivateKey, ed25519.PrivateKey:
		return s.signer
	}
	return nil
}

func hashOf(alg string) crypto.Hash {
	switch alg[2:] {
	case "384":
		return crypto.SHA384
	case "512":
		return crypto.SHA512
	}
	return crypto.SHA256
}

// call signs. A key outside gets a goroutine of its own, so that the caller can stop waiting, also for one that does not look
// at its context. The goroutine keeps its place until the key has answered.
func (s *Signer) call(ctx context.Context, msg []byte, opts crypto.SignerOpts) ([]byte, error) {
	if !s.remote {
		return s.signer.Sign(rand.Reader, msg, opts)
	}
	select {
	case s.places <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("jws: too many wait for this key: %w", ctx.Err())
	}
	type answer struct {
		sig []byte
		err error
	}
	done := make(chan answer, 1)
	go func() {
		defer func() { <-s.places }()
		var a answer
		defer func() {
			if p := recover(); p != nil { // a signer of the host's must not end the host
				a.err = hook.Panicked(p)
			}
			done <- a
		}()
		if c, ok := s.signer.(ContextSigner); ok {
			a.sig, a.err = c.SignContext(ctx, rand.Reader, msg, opts)
		} else {
			a.sig, a.err = s.signer.Sign(rand.Reader, msg, opts)
		}
	}()
	select {
	case a := <-done:
		return a.sig, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// maxECDSA is r||s on the largest curve.
const maxECDSA = 132

// fixedWidth appends an ASN.1 signature as r||s (RFC 7518 §3.4) to room.
func fixedWidth(room, der []byte, half int) ([]byte, error) {
	bad := errors.New("jws: not an ECDSA signature")
	if len(der) < 8 || der[0] != 0x30 {
		return nil, bad
	}
	b := der[1:]
	if b[0] == 0x81 {
		b = b[1:]
	}
	if int(b[0]) != len(b)-1 {
		return nil, bad
	}
	b = b[1:]
	out := append(room, make([]byte, 2*half)...)
	both := out[len(room):]
	for i := range 2 {
		if len(b) < 3 || b[0] != 0x02 || int(b[1]) > len(b)-2 || b[1] == 0 {
			return nil, bad
		}
		v := b[2 : 2+int(b[1])]
		b = b[2+len(v):]
		for len(v) > 0 && v[0] == 0 {
			v = v[1:]
		}
		if len(v) > half {
			return nil, bad
		}
		copy(both[(i+1)*half-len(v):], v)
	}
	if len(b) != 0 {
		return nil, bad
	}
	return out, nil
}

// AppendClaims appends the JSON of c and the members of private, a compact JSON object or nothing, to dst.
func AppendClaims(dst []byte, c *Claims, private []byte) []byte {
	dst = append(dst, '{')
	text := func(name, v string) {
		if v != "" {
			dst = append(dst, '"')
			dst = append(dst, name...)
			dst = append(dst, `":`...)
			dst = appendText(dst, v)
			dst = append(dst, ',')
		}
	}
	list := func(name string, v []string) {
		if len(v) > 0 {
			dst = append(dst, '"')
			dst = append(dst, name...)
			dst = append(dst, `":[`...)
			for i, s := range v {
				if i > 0 {
					dst = append(dst, ',')
				}
				dst = appendText(dst, s)
			}
			dst = append(dst, `],`...)
		}
	}
	number := func(name string, v int64) {
		if v != 0 {
			dst = append(dst, '"')
			dst = append(dst, name...)
			dst = append(dst, `":`...)
			dst = strconv.AppendInt(dst, v, 10)
			dst = append(dst, ',')
		}
	}
	text("iss", c.Issuer)
	text("sub", c.Subject)
	if len(c.Audience) == 1 {
		text("aud", c.Audience[0])
	} else {
		list("aud", c.Audience)
	}
	number("exp", c.Expires)
	number("iat", c.IssuedAt)
	number("nbf", c.NotBefore)
	text("jti", c.ID)
	text("client_id", c.ClientID)
	text("scope", c.Scope)
	list("roles", c.Roles)
	text("sid", c.SessionID)
	text("pos", c.Position)
	list("gra", c.Chain)
	for i, a := range c.Actors {
		dst = append(dst, `"act":{`...)
		text("sub", a.Subject)
		text("iss", a.Issuer)
		text("client_id", a.ClientID)
		if i == len(c.Actors)-1 {
			dst[len(dst)-1] = '}'
			for range i {
				dst = append(dst, '}')
			}
			dst = append(dst, ',')
		}
	}
	if kind, print, ok := cutBinding(c.Binding); ok {
		dst = append(dst, `"cnf":{"`...)
		dst = append(dst, kind...)
		dst = append(dst, `":`...)
		dst = appendText(dst, print)
		dst = append(dst, `},`...)
	}
	if len(private) > 2 {
		return append(dst, private[1:]...)
	}
	if dst[len(dst)-1] == ',' {
		dst = dst[:len(dst)-1]
	}
	return append(dst, '}')
}

func cutBinding(b string) (kind, print string, ok bool) {
	for _, kind := range [...]string{"jkt", "x5t#S256"} {
		if len(b) > len(kind)+1 && b[:len(kind)] == kind && b[len(kind)] == ':' {
			return kind, b[len(kind)+1:], true
		}
	}
	return "", "", false
}

const hexDigits = "0123456789abcdef"

// appendText appends a JSON string.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		if c >= utf8.RuneSelf {
			if r, n := utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || n > 1 {
				i += n
				continue
			}
			dst = append(append(dst, s[from:i]...), `\ufffd`...)
		} else if c == '"' || c == '\\' {
			dst = append(append(dst, s[from:i]...), '\\', c)
		} else {
			dst = append(append(dst, s[from:i]...), '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
		i++
		from = i
	}
	return append(append(dst, s[from:]...), '"')
}
