// Public keys: which are accepted, and how they verify. Key sets (RFC 7517).

package jws

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha512" // SHA-384 and SHA-512
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"unsafe"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// PublicKey verifies tokens under the one algorithm that is registered for it. For HMAC it is the secret itself.
type PublicKey struct {
	KID, Alg string
	Key      crypto.PublicKey // *ecdsa.PublicKey, *rsa.PublicKey, ed25519.PublicKey, or []byte for HMAC
	// Audience: what the key signs is for this audience alone; "": for any.
	Audience string
	sigSize  int // exact, in bytes

	twin *PublicKey // of the same KID and another type; see Beside
}

const (
	minRSA      = 2048
	minHMAC     = 32
	maxRSA      = 4096 // what go-jose reads in a JWK: a longer key could be stored and never be read again
	maxExponent = 1<<31 - 1
)

// hmacSizes are the sizes of the MACs in bytes, and of the shortest secrets under them (RFC 7518 §3.2).
var hmacSizes = map[string]int{"HS256": minHMAC, "HS384": 48, "HS512": 64}

var curves = map[string]elliptic.Curve{"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521()}

// PublicAlgs are the algorithms by which others may sign for us: DPoP proofs, client assertions. Ed25519 is RFC 9864's name of
// EdDSA with such a key.
var PublicAlgs = []string{"ES256", "ES384", "ES512", "EdDSA", "Ed25519", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}

// FAPIAlgs are those of them that FAPI 2.0 §5.4.1 allows, by the names that it uses.
var FAPIAlgs = []string{"PS256", "ES256", "EdDSA"}

var errVerify = errors.New("jws: the signature does not fit")

// NewPublicKey checks and prepares a key. It refuses weak and malformed ones with the reason.
func NewPublicKey(kid, alg string, key any) (*PublicKey, error) {
	k := &PublicKey{KID: kid, Alg: alg, Key: key}
	if alg == "Ed25519" { // RFC 9864's name of what RFC 8037 calls EdDSA
		k.Alg = "EdDSA"
	}
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		curve, ok := curves[alg]
		if !ok || key == nil || key.Curve != curve {
			return nil, fmt.Errorf("jws: %q is not the algorithm of a key on this curve", alg)
		}
		if key.X == nil || key.Y == nil {
			return nil, errors.New("jws: the EC key has no point")
		}
		if _, err := key.ECDH(); err != nil { // off the curve, or the point at infinity
			return nil, errors.New("jws: the EC point is not on its curve")
		}
		k.sigSize = 2 * ((curve.Params().BitSize + 7) / 8)
	case *rsa.PublicKey:
		switch alg {
		case "RS256", "RS384", "RS512", "PS256", "PS384", "PS512":
		default:
			return nil, fmt.Errorf("jws: %q is not an algorithm of RSA keys", alg)
		}
		if key == nil || key.N == nil {
			return nil, errors.New("jws: the RSA key has no modulus")
		}
		switch n := key.N.BitLen(); {
		case n < minRSA:
			return nil, fmt.Errorf("jws: the RSA modulus has %d bits, at least %d are needed", n, minRSA)
		case n > maxRSA:
			return nil, fmt.Errorf("jws: the RSA modulus has %d bits, at most %d are taken", n, maxRSA)
		case key.N.Bit(0) == 0:
			return nil, errors.New("jws: the RSA modulus is even")
		case key.E < 3 || key.E&1 == 0 || key.E > maxExponent:
			return nil, fmt.Errorf("jws: the RSA exponent %d is not odd and between 3 and 2^31", key.E)
		}
		if roca(key.N) {
			return nil, errors.New("jws: the RSA modulus is of the kind that can be factored (CVE-2017-15361)")
		}
		k.sigSize = key.Size()
	case ed25519.PublicKey:
		if k.Alg != "EdDSA" {
			return nil, fmt.Errorf("jws: %q is not the algorithm of Ed25519 keys", alg)
		}
		if len(key) != ed25519.PublicKeySize {
			return nil, errors.New("jws: an Ed25519 key has 32 bytes")
		}
		if smallOrder(key) {
			return nil, errors.New("jws: the Ed25519 point has small order: everything would verify")
		}
		k.sigSize = ed25519.SignatureSize
	case []byte:
		if alg != "HS256" {
			return nil, fmt.Errorf("jws: %q is not an algorithm of shared secrets", alg)
		}
		return NewSecret(kid, alg, key)
	default:
		return nil, fmt.Errorf("jws: keys of type %T are not supported", key)
	}
	return k, nil
}

// NewSecret is NewPublicKey for a secret under which another program signed: HS384 and HS512 are taken too.
func NewSecret(kid, alg string, secret []byte) (*PublicKey, error) {
	size, ok := hmacSizes[alg]
	switch {
	case !ok:
		return nil, fmt.Errorf("jws: %q is not an algorithm of shared secrets", alg)
	case len(secret) < size:
		return nil, fmt.Errorf("jws: the HMAC secret has %d bytes, at least %d are needed (RFC 7518 §3.2)", len(secret), size)
	}
	return &PublicKey{KID: kid, Alg: alg, Key: secret, sigSize: size}, nil
}

// lowPoints are the encodings of points of small order, without the sign bit, non-canonical ones included.
var lowPoints = func() (out [][]byte) {
	for _, s := range []string{
		"0000000000000000000000000000000000000000000000000000000000000000",
		"0100000000000000000000000000000000000000000000000000000000000000",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
		"ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
	} {
		b, _ := hex.DecodeString(s)
		out = append(out, b)
	}
	return out
}()

func smallOrder(key []byte) bool {
	y := bytes.Clone(key)
	y[31] &= 0x7f
	for _, low := range lowPoints {
		if bytes.Equal(y, low) {
			return true
		}
	}
	return false
}

// rocaPrimes are the small primes modulo which the moduli of Infineon's library are powers of 65537 (Nemec and others,
// "The Return of Coppersmith's Attack", §3.3). Of sound keys one in 2^28 is so too, and is refused with them.
var rocaPrimes = [...]uint64{11, 13, 17, 19, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157}

// roca reports whether n has that fingerprint.
func roca(n *big.Int) bool {
	var rest, modulus big.Int
	for _, p := range rocaPrimes {
		want := rest.Mod(n, modulus.SetUint64(p)).Uint64()
		power, found := uint64(1), want == 1
		for power = power * 65537 % p; power != 1; power = power * 65537 % p {
			found = found || power == want
		}
		if !found {
			return false
		}
	}
	return true
}

// Allows reports whether a header's alg is the key's own.
func (k *PublicKey) Allows(alg string) bool {
	return alg == k.Alg || alg == "Ed25519" && k.Alg == "EdDSA"
}

// kind is the key's type by the names of RFC 7518 §6.1.
func (k *PublicKey) kind() string {
	switch k.Key.(type) {
	case *ecdsa.PublicKey:
		return "EC"
	case *rsa.PublicKey:
		return "RSA"
	case ed25519.PublicKey:
		return "OKP"
	}
	return "oct"
}

// Beside is k with o as a key of the same KID: an issuer may give keys of different types one name (RFC 7517 §4.5), and the alg of
// what they signed tells which one is meant. o may be nil. Neither is changed.
func (k *PublicKey) Beside(o *PublicKey) *PublicKey {
	both := *k
	both.twin = o
	return &both
}

// All are the keys of k's name, each alone.
func (k *PublicKey) All() []*PublicKey {
	var out []*PublicKey
	for ; k != nil; k = k.twin {
		out = append(out, k.Beside(nil))
	}
	return out
}

// For is the key of k's name that alg may be used with, k if there is none.
func (k *PublicKey) For(alg string) *PublicKey {
	for t := k; t != nil; t = t.twin {
		if t.Allows(alg) {
			return t
		}
	}
	return k
}

// SameKeys reports whether the same keys have k's name as have o's.
func (k *PublicKey) SameKeys(o *PublicKey) bool {
	if k == nil || o == nil {
		return k == o
	}
	if k.twin == nil && o.twin == nil {
		return k.Equal(o)
	}
	a, b := k.All(), o.All()
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x *PublicKey) bool { return !slices.ContainsFunc(b, x.Equal) })
}

// Equal reports whether both are the same key under the same name and algorithm.
func (k *PublicKey) Equal(o *PublicKey) bool {
	if k.KID != o.KID || k.Alg != o.Alg || k.Audience != o.Audience {
		return false
	}
	if a, ok := k.Key.([]byte); ok {
		b, ok := o.Key.([]byte)
		return ok && bytes.Equal(a, b)
	}
	eq, ok := k.Key.(interface{ Equal(crypto.PublicKey) bool })
	return ok && eq.Equal(o.Key)
}

// SignsFor reports whether the key may sign what is for these audiences: who has one audience's key makes no tokens for others.
func (k *PublicKey) SignsFor(audiences []string) bool {
	return k.Audience == "" || len(audiences) == 1 && audiences[0] == k.Audience
}

// methods are jwt/v5's, by name. PSS is pinned to a salt as long as the hash (RFC 7518 §3.5): jwt/v5's own take any.
var methods = func() map[string]jwt.SigningMethod {
	m := map[string]jwt.SigningMethod{"EdDSA": jwt.SigningMethodEdDSA}
	for _, x := range []jwt.SigningMethod{jwt.SigningMethodHS256, jwt.SigningMethodHS384, jwt.SigningMethodHS512, jwt.SigningMethodES256, jwt.SigningMethodES384, jwt.SigningMethodES512,
		jwt.SigningMethodRS256, jwt.SigningMethodRS384, jwt.SigningMethodRS512} {
		m[x.Alg()] = x
	}
	for _, x := range []*jwt.SigningMethodRSAPSS{jwt.SigningMethodPS256, jwt.SigningMethodPS384, jwt.SigningMethodPS512} {
		m[x.Alg()] = &jwt.SigningMethodRSAPSS{SigningMethodRSA: x.SigningMethodRSA, Options: x.Options, VerifyOptions: &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}}
	}
	return m
}()

// Verify checks a signature, whose length is looked at first.
func (k *PublicKey) Verify(signingInput string, sig []byte) error {
	if len(sig) != k.sigSize || methods[k.Alg].Verify(signingInput, sig, k.Key) != nil {
		return errVerify
	}
	return nil
}

// VerifyAny checks t's signature by each of the keys of k's name whose algorithm t has: a host's own service may have had several secrets
// without a name.
func (k *PublicKey) VerifyAny(t *Token) error {
	for ; k != nil; k = k.twin {
		if k.Allows(t.Header.Alg) && k.Verify(t.SigningInput, t.Signature) == nil {
			return nil
		}
	}
	return errVerify
}

// asBytes is s without a copy, for those who only read.
func asBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// digest appends the hash of s to dst.
func digest(dst []byte, alg, s string) []byte {
	h := hashOf(alg).New()
	h.Write(asBytes(s))
	return h.Sum(dst)
}

// Thumbprint is the RFC 7638 thumbprint of a public key, SHA-256, base64url.
func Thumbprint(key crypto.PublicKey) (string, error) {
	j := jose.JSONWebKey{Key: key}
	sum, err := j.Thumbprint(crypto.SHA256)
	if err != nil {
		return "", err
	}
	return base64.RawURLEncoding.EncodeToString(sum), nil
}

// MarshalJWK is the public JWK (RFC 7517) of a signing key.
func MarshalJWK(k *PublicKey) ([]byte, error) {
	j := jose.JSONWebKey{Key: k.Key, KeyID: k.KID, Algorithm: k.Alg, Use: "sig"}
	if !j.IsPublic() || !j.Valid() {
		return nil, errors.New("jws: not a public key")
	}
	doc, err := j.MarshalJSON()
	if err != nil || k.Audience == "" {
		return doc, err
	}
	doc = append(doc[:len(doc)-1], `,"`+memberAudience+`":`...)
	return append(appendText(doc, k.Audience), '}'), nil
}

// memberAudience names PublicKey.Audience in a JWK. Readers that do not know it pass over it (RFC 7517 §4), and go by the
// token's aud alone.
const memberAudience = "apitoken_aud"

const (
	maxSetBytes = 256 << 10
	maxSetKeys  = 1000
)

// ParseJWK reads one public key. Without alg it is the usual one of its type.
func ParseJWK(doc []byte) (*PublicKey, error) { return parseJWK(doc, "") }

// ParseProofKey reads the public key that came with a proof under alg, which must be the key's own where that names one.
func ParseProofKey(doc []byte, alg string) (*PublicKey, error) {
	k, err := parseJWK(doc, alg)
	if err == nil && !k.Allows(alg) {
		return nil, fmt.Errorf("jws: alg is not the key's own")
	}
	return k, err
}

func parseJWK(doc []byte, usual string) (*PublicKey, error) {
	if err := CheckJSON(doc); err != nil {
		return nil, err
	}
	var j jose.JSONWebKey
	if err := j.UnmarshalJSON(doc); err != nil {
		return nil, fmt.Errorf("jws: unreadable key: %w", err)
	}
	if !j.IsPublic() {
		return nil, errors.New("jws: a private or shared key where a public one belongs")
	}
	if j.Use != "" && j.Use != "sig" {
		return nil, errors.New("jws: not for signatures")
	}
	if len(j.KeyID) > maxKID {
		return nil, errSize
	}
	_, isRSA := j.Key.(*rsa.PublicKey)
	audience, err := checkMembers(string(doc), isRSA)
	if err != nil {
		return nil, err
	}
	alg := j.Algorithm
	if alg == "" {
		alg = usual
	}
	if alg == "" {
		switch key := j.Key.(type) {
		case *ecdsa.PublicKey:
			for name, c := range curves {
				if key.Curve == c {
					alg = name
				}
			}
		case *rsa.PublicKey:
			alg = "RS256"
		case ed25519.PublicKey:
			alg = "EdDSA"
		}
	}
	k, err := NewPublicKey(j.KeyID, alg, j.Key)
	if err != nil {
		return nil, err
	}
	k.Audience = audience
	return k, nil
}

// checkMembers looks at what go-jose passes over: key_ops without "verify" (RFC 7517 §4.3), an RSA exponent of more
// than 32 bits, of which it would keep the low ones and so read another key than other readers do, and the audience.
func checkMembers(doc string, isRSA bool) (audience string, err error) {
	p := scanner{s: doc}
	err = p.object(func(name string) error {
		switch {
		case name == "key_ops":
			ops, err := p.texts(maxStrings)
			if err == nil && !slices.Contains(ops, "verify") {
				err = errors.New("jws: not for verifying signatures")
			}
			return err
		case name == memberAudience:
			text, err := p.text()
			if err == nil && text == "" {
				err = errors.New("jws: the key is for an audience without a name")
			}
			audience = text
			return err
		case name == "e" && isRSA:
			text, err := p.text()
			if err != nil {
				return err
			}
			e, err := base64.RawURLEncoding.DecodeString(text)
			if err != nil || len(bytes.TrimLeft(e, "\x00")) > 4 {
				return errors.New("jws: the RSA exponent has more than 32 bits")
			}
			return nil
		}
		return p.skip(1)
	})
	return audience, err
}

// ParseJWKS reads a key set. Keys that are of no use here (other types, weak, private, for encryption) are left out, each
// with its reason. Keys of different types may share a kid (RFC 7517 §4.5). Of different keys of one type with one kid the one is
// taken that known has under it, which may be nil; else none, because nobody can say which is meant. The same key twice is one key.
func ParseJWKS(doc []byte, known *map[string]*PublicKey) (keys []*PublicKey, left []error, err error) {
	if len(doc) > maxSetBytes {
		return nil, nil, errSize
	}
	raws, err := setMembers(string(doc))
	if err != nil {
		return nil, nil, err
	}
	type name struct{ kid, kind string }
	named := map[name][]*PublicKey{}
	for _, raw := range raws {
		k, err := ParseJWK([]byte(raw))
		if err != nil {
			left = append(left, err)
			continue
		}
		n := name{k.KID, k.kind()}
		if slices.ContainsFunc(named[n], k.Equal) {
			left = append(left, fmt.Errorf("jws: the key %q comes twice", k.KID))
			continue
		}
		named[n] = append(named[n], k)
		keys = append(keys, k)
	}

	isKnown := func(k *PublicKey) bool {
		return known != nil && slices.ContainsFunc((*known)[k.KID].All(), k.Equal)
	}
	out := keys[:0]
	for _, k := range keys {
		if n := len(named[name{k.KID, k.kind()}]); n > 1 && !isKnown(k) {
			left = append(left, fmt.Errorf("jws: kid %q names %d keys", k.KID, n))
			continue
		}
		out = append(out, k)
	}
	return out, left, nil
}

// setMembers cuts the keys out of a set, each as its text.
func setMembers(doc string) (raws []string, err error) {
	p := scanner{s: doc}
	found := false
	err = p.object(func(name string) error {
		if name != "keys" {
			if sameName(name, "keys") {
				return errCase
			}
			return p.skip(1)
		}
		found = true
		if !p.next('[') {
			return errType
		}
		for !p.next(']') {
			if len(raws) > 0 && !p.next(',') {
				return errSyntax
			}
			if len(raws) == maxSetKeys {
				return errMembers
			}
			p.space()
			from := p.i
			if err := p.skip(2); err != nil {
				return err
			}
			raws = append(raws, p.s[from:p.i])
		}
		return nil
	})
	if err == nil {
		err = p.end()
	}
	if err == nil && !found {
		err = errors.New("jws: not a key set")
	}
	return raws, err
}
