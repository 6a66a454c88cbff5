// Package opaque is the text of tokens that are not JWTs: refresh tokens, API keys, tickets and client secrets. A
// token is prefix_kind_body, the body a fixed-width base62 of a payload and a checksum, so that a scanner's expression
// finds it. One that was cut or extended never passes, a mistyped one once in four billion times, and then the tag, which
// is checked by whoever holds the key, stops it. Nothing here knows what a token is good for.
package opaque

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"iter"
	"strings"
	"sync"
	"time"
)

// Kind is what a token is for; it stands in its text.
type Kind uint8

// The kinds. None: not of this package's shape.
const (
	None Kind = iota
	Refresh
	APIKey
	Ticket
	ClientSecret
)

var kindNames = [...]string{"", "rt", "ak", "tk", "cs"}

// Pattern matches what Find looks at before it verifies the checksum, in RE2 syntax.
const Pattern = `[a-z][a-z0-9]{1,15}_(?:ak_[0-9A-Za-z]{101}|cs_[0-9A-Za-z]{101}|rt_[0-9A-Za-z]{106}|tk_[0-9A-Za-z]{101})`

const (
	version     = 1
	keySize     = 1 + 4 + 16 + 32 + 16     // version, kid, ID, secret, tag
	refreshSize = 1 + 4 + 16 + 4 + 32 + 16 // version, kid, grant, sequence, secret, tag
	sumSize     = 4
	maxPrefix   = 16
)

// Errors of decoding. They say nothing about what was presented.
var (
	ErrShape    = errors.New("opaque: not a token of this kind")
	ErrChecksum = errors.New("opaque: checksum")
)

// base62 works on groups of eight bytes, eleven digits each, the most significant first; a last group of n bytes has
// the digits that n bytes need. A group whose digits exceed its bytes is not canonical and refused.
const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

var (
	groupChars = [9]int{0, 2, 3, 5, 6, 7, 9, 10, 11}
	digitOf    = func() (t [256]byte) {
		for i := range t {
			t[i] = 0xff
		}
		for i := range digits {
			t[digits[i]] = byte(i)
		}
		return t
	}()
)

func textSize(n int) int { return n/8*11 + groupChars[n%8] }

func appendBase62(dst []byte, b []byte) []byte {
	for len(b) > 0 {
		n := min(8, len(b))
		var v uint64
		for _, c := range b[:n] {
			v = v<<8 | uint64(c)
		}
		w := groupChars[n]
		at := len(dst)
		dst = append(dst, "00000000000"[:w]...)
		for i := at + w - 1; i >= at; i-- {
			dst[i] = digits[v%62]
			v /= 62
		}
		b = b[n:]
	}
	return dst
}

// decodeBase62 fills dst, whose length says how many bytes s must hold.
func decodeBase62[text string | []byte](dst []byte, s text) bool {
	if len(s) != textSize(len(dst)) {
		return false
	}
	for len(dst) > 0 {
		n := min(8, len(dst))
		w := groupChars[n]
		var v uint64
		for i := range w {
			d := digitOf[s[i]]
			if d == 0xff {
				return false
			}
			if i == 10 { // only the eleventh digit can overflow 64 bits
				hi := v
				v = v*62 + uint64(d)
				if hi > (1<<64-1-uint64(d))/62 {
					return false
				}
			} else {
				v = v*62 + uint64(d)
			}
		}
		if n < 8 && v>>(8*n) != 0 {
			return false
		}
		for i := n - 1; i >= 0; i-- {
			dst[i] = byte(v)
			v >>= 8
		}
		s, dst = s[w:], dst[n:]
	}
	return true
}

// scratch is the working memory of one decoding. It is made whole, because crc32 keeps its argument from the stack.
type scratch struct {
	body [refreshSize + sumSize]byte // payload and checksum
	head [maxPrefix + 8]byte
}

// sum is over everything that stands before the checksum, the prefix included, so that no part can be swapped. head is
// room for the prefix.
func sum[text string | []byte](head []byte, prefix text, k Kind, payload []byte) uint32 {
	b := append(head[:0], "ap1:"...)
	b = append(b, prefix...)
	b = append(b, '_')
	b = append(b, kindNames[k]...)
	return crc32.Update(crc32.Update(0, castagnoli, b), castagnoli, payload)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func encode(prefix string, k Kind, payload []byte) string {
	var w scratch
	b := append(w.body[:0], payload...)
	b = binary.BigEndian.AppendUint32(b, sum(w.head[:], prefix, k, b))
	out := make([]byte, 0, len(prefix)+4+textSize(len(b)))
	out = append(out, prefix...)
	out = append(out, '_')
	out = append(out, kindNames[k]...)
	out = append(out, '_')
	return string(appendBase62(out, b))
}

func payloadSize(k Kind) int {
	if k == Refresh {
		return refreshSize
	}
	return keySize
}

// decode checks shape, size and checksum and returns the payload, in w.
func decode(w *scratch, token, prefix string, k Kind) ([]byte, error) {
	n := payloadSize(k)
	body := len(prefix) + 4
	if len(token) != body+textSize(n+sumSize) || token[:len(prefix)] != prefix || token[len(prefix)] != '_' ||
		token[len(prefix)+1:body-1] != kindNames[k] || token[body-1] != '_' {
		return nil, ErrShape
	}
	b := w.body[:n+sumSize]
	if !decodeBase62(b, token[body:]) {
		return nil, ErrShape
	}
	if sum(w.head[:], prefix, k, b[:n]) != binary.BigEndian.Uint32(b[n:]) {
		return nil, ErrChecksum
	}
	if b[0] != version {
		return nil, ErrShape
	}
	return b[:n], nil
}

// KindOf tells opaque tokens from JWTs by their first characters. It promises nothing about the rest.
func KindOf(token string) Kind {
	// A JWT has a dot long before an underscore could make it look like one of ours: header text starts "ey" and
	// base64url may contain "_ak_", so the prefix's own length is the bound.
	for i := 2; i <= maxPrefix && i+4 <= len(token); i++ {
		if token[i] != '_' {
			continue
		}
		if token[i+3] != '_' || !prefixed(token[:i]) {
			return None
		}
		for k := Refresh; k <= ClientSecret; k++ {
			if token[i+1:i+3] == kindNames[k] && strings.IndexByte(token, '.') < 0 {
				return k
			}
		}
		return None
	}
	return None
}

func prefixed[text string | []byte](s text) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= 'a' && c <= 'z' || i > 0 && c >= '0' && c <= '9') {
			return false
		}
	}
	return len(s) >= 2 && len(s) <= maxPrefix
}

// Start is the part of a token that may be shown in lists: its first characters, up to those that hold the first random bytes of
// the ID. Its last nine tell tokens apart: those before hold the version, the kid and the time. Of the secret it holds nothing.
func Start(token string) string {
	const shown = 22 // of the body: two whole groups, which are version, kid and eleven bytes of the ID
	i := strings.LastIndexByte(token, '_') + 1
	return token[:min(i+shown, len(token))]
}

// Find yields the tokens in text, whatever their prefix, that stand there whole with a good checksum. A token that
// other letters or digits adjoin is found too. The time is linear in the text.
func Find(text []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		var w scratch
		done := 0 // nothing before it is looked at again
		for at := 0; at < len(text); {
			i := bytes.IndexByte(text[at:], '_')
			if i < 0 {
				return
			}
			i += at
			at = i + 1
			if i+4 > len(text) || text[i+3] != '_' {
				continue
			}
			k := None
			for c := Refresh; c <= ClientSecret; c++ {
				if string(text[i+1:i+3]) == kindNames[c] {
					k = c
				}
			}
			end := i + 4 + textSize(payloadSize(k)+sumSize)
			if k == None || end > len(text) {
				continue
			}
			if from := findFrom(&w, text, done, i, end, k); from >= 0 {
				if !yield(text[from:end]) {
					return
				}
				done, at = end, end
			}
		}
	}
}

// findFrom tries each prefix that may end at i, the longest first: letters that merely adjoin a token are in it too.
func findFrom(w *scratch, text []byte, done, i, end int, k Kind) int {
	low := i
	for low > done && low > i-maxPrefix {
		if c := text[low-1]; !(c >= 'a' && c <= 'z' || c >= '0' && c <= '9') {
			break
		}
		low--
	}
	n := payloadSize(k)
	buf := w.body[:n+sumSize]
	if i-low < 2 || !decodeBase62(buf, text[i+4:end]) || buf[0] != version {
		return -1
	}
	for from := low; i-from >= 2; from++ {
		if prefix := text[from:i]; prefixed(prefix) && sum(w.head[:], prefix, k, buf[:n]) == binary.BigEndian.Uint32(buf[n:]) {
			return from
		}
	}
	return -1
}

// ID is a time-ordered identifier: 48 bits of Unix ms, then 80 random bits.
type ID [16]byte

// idDigits are those of base32hex (RFC 4648 §7) in small letters: texts sort as the bytes do.
const idDigits = "0123456789abcdefghijklmnopqrstuv"

var idValues = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i := range idDigits {
		t[idDigits[i]] = byte(i)
	}
	return t
}()

// idTextSize is the length of an ID as text.
const idTextSize = 26

var random struct {
	mu  sync.Mutex // guards both
	buf [1280]byte
	n   int
}

// APIKeyLabel goes into the tags of API keys. Validators without a store verify these by the keys that their issuer's feed tells.
const APIKeyLabel = "ak1"

// NewID makes an ID. Those of one millisecond are in no particular order.
func NewID(now time.Time) (id ID) {
	ms := uint64(max(now.UnixMilli(), 0))
	binary.BigEndian.PutUint64(id[:8], ms<<16)
	random.mu.Lock()
	if random.n == 0 {
		rand.Read(random.buf[:])
		random.n = len(random.buf)
	}
	copy(id[6:], random.buf[random.n-10:random.n])
	clear(random.buf[random.n-10 : random.n])
	random.n -= 10
	random.mu.Unlock()
	return id
}

// String is 26 characters, in the same order as the bytes.
func (id ID) String() string {
	var b [idTextSize]byte
	hi, lo := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])
	for i := range 12 {
		b[i] = idDigits[hi>>(59-5*i)&31]
		b[13+i] = idDigits[lo>>(58-5*i)&31]
	}
	b[12] = idDigits[hi<<1&31|lo>>63]
	b[25] = idDigits[lo<<2&31]
	return string(b[:])
}

// Time is when the ID was made, to the millisecond, by the clock of who made it.
func (id ID) Time() time.Time {
	return time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16))
}

// ParseID reads what String makes, nothing else.
func ParseID(s string) (id ID, err error) {
	if len(s) != idTextSize {
		return id, ErrShape
	}
	var hi, lo uint64
	var bad byte
	for i := range 12 {
		a, b := idValues[s[i]], idValues[s[13+i]]
		bad |= a | b
		hi, lo = hi<<5|uint64(a), lo<<5|uint64(b)
	}
	middle, last := idValues[s[12]], idValues[s[25]]
	if bad |= middle | last; bad > 31 || last&3 != 0 { // the last character has two bits to spare
		return id, ErrShape
	}
	binary.BigEndian.PutUint64(id[:8], hi<<4|uint64(middle>>1))
	binary.BigEndian.PutUint64(id[8:], uint64(middle)<<63|lo<<3|uint64(last>>2))
	return id, nil
}

// Key is the payload of API keys, tickets and client secrets.
type Key struct {
	KID    [4]byte // of the MAC key that made Tag
	ID     ID
	Secret [32]byte
	Tag    [16]byte
}

// EncodeKey makes the text of k.
func EncodeKey(prefix string, kind Kind, k *Key) string {
	var buf [keySize]byte
	b := append(buf[:0], version)
	b = append(b, k.KID[:]...)
	b = append(b, k.ID[:]...)
	b = append(b, k.Secret[:]...)
	b = append(b, k.Tag[:]...)
	return encode(prefix, kind, b)
}

// DecodeKey reads a token of kind, which must have our prefix. ErrShape, ErrChecksum.
func DecodeKey(token, prefix string, kind Kind) (*Key, error) {
	k := new(Key)
	return k, DecodeKeyInto(k, token, prefix, kind)
}

// DecodeKeyInto is DecodeKey into memory that the caller has.
func DecodeKeyInto(k *Key, token, prefix string, kind Kind) error {
	var w scratch
	b, err := decode(&w, token, prefix, kind)
	if err != nil {
		return err
	}
	copy(k.KID[:], b[1:])
	copy(k.ID[:], b[5:])
	copy(k.Secret[:], b[21:])
	copy(k.Tag[:], b[53:])
	return nil
}

// RefreshToken is the payload of a refresh token.
type RefreshToken struct {
	KID   [4]byte
	Grant [16]byte
	Seq   uint32
	S     [32]byte
	Tag   [16]byte
}

// EncodeRefresh makes the text of t.
func EncodeRefresh(prefix string, t *RefreshToken) string {
	var buf [refreshSize]byte
	b := append(buf[:0], version)
	b = append(b, t.KID[:]...)
	b = append(b, t.Grant[:]...)
	b = binary.BigEndian.AppendUint32(b, t.Seq)
	b = append(b, t.S[:]...)
	b = append(b, t.Tag[:]...)
	return encode(prefix, Refresh, b)
}

// DecodeRefresh reads a refresh token, which must have our prefix. ErrShape, ErrChecksum.
func DecodeRefresh(token, prefix string) (*RefreshToken, error) {
	var w scratch
	b, err := decode(&w, token, prefix, Refresh)
	if err != nil {
		return nil, err
	}
	t := &RefreshToken{Seq: binary.BigEndian.Uint32(b[21:])}
	copy(t.KID[:], b[1:])
	copy(t.Grant[:], b[5:])
	copy(t.S[:], b[25:])
	copy(t.Tag[:], b[57:])
	return t, nil
}

// Uint32 is a number as a field of a hash.
func Uint32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// fields makes label and fields one text that no other label and fields make: each has its length before it.
func fields(dst []byte, label string, parts ...[]byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst, uint32(len(label)))
	dst = append(dst, label...)
	for _, f := range parts {
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(f)))
		dst = append(dst, f...)
	}
	return dst
}

// Hash is SHA-256 over label and fields.
func Hash(label string, parts ...[]byte) [32]byte {
	var buf [256]byte
	return sha256.Sum256(fields(buf[:0], label, parts...))
}

// MAC is HMAC-SHA256 over label and fields.
func MAC(key []byte, label string, parts ...[]byte) (out [32]byte) {
	m := hmac.New(sha256.New, key)
	var buf [256]byte
	m.Write(fields(buf[:0], label, parts...))
	m.Sum(out[:0])
	return out
}

// Tag is the first half of MAC: a filter, not a proof.
func Tag(key []byte, label string, parts ...[]byte) [16]byte {
	m := MAC(key, label, parts...)
	return [16]byte(m[:16])
}

// TokenKind is what logs and answers call a token: "apikey", or "access" for a JWT.
func TokenKind(apiKey bool) string {
	if apiKey {
		return "apikey"
	}
	return "access"
}
