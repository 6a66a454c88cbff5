// The positions that a token carries.

package rules

import (
	"math"
	"strconv"
	"strings"

	"github.com/apitoken-go/apitoken/store"
)

// Positions are the two places in the order of state changes that a token carries. Birth is where the order
// stood when the identity was confirmed: the grant's, unchanged by refresh and exchange. View is what
// the issuer had seen when it signed this token. Comparing these with a rule's position, and not times with
// times, makes the verdict independent of clocks and of the order in which rules arrive.
type Positions struct {
	Birth, View store.Position
}

// String is the form of the pos claim: history.birth.view in hexadecimal, with the birth's own history behind
// it where a restore lies between the two. Positions have up to 63 bits, more than a JSON number carries.
func (p Positions) String() string {
	b := make([]byte, 0, 64)
	b = strconv.AppendUint(b, p.View.History, 16)
	b = append(b, '.')
	b = strconv.AppendInt(b, p.Birth.N, 16)
	b = append(b, '.')
	b = strconv.AppendInt(b, p.View.N, 16)
	if p.Birth.History != p.View.History {
		b = append(b, '.')
		b = strconv.AppendUint(b, p.Birth.History, 16)
	}
	return string(b)
}

// ParsePositions reads the claim back; only what String makes is taken.
func ParsePositions(s string) (Positions, bool) {
	var p Positions
	hist, rest, ok1 := strings.Cut(s, ".")
	birth, rest, ok2 := strings.Cut(rest, ".")
	seen, old, ok3 := strings.Cut(rest, ".")
	h, e1 := parseHex(hist)
	b, e2 := parseHex(birth)
	v, e3 := parseHex(seen)
	if !ok1 || !ok2 || !e1 || !e2 || !e3 || b > v || v > math.MaxInt64 {
		return p, false
	}
	p = Positions{Birth: store.Position{History: h, N: int64(b)}, View: store.Position{History: h, N: int64(v)}}
	if ok3 {
		oh, ok := parseHex(old)
		if !ok || oh == h {
			return Positions{}, false
		}
		p.Birth.History = oh
	}
	return p, true
}

// parseHex reads what strconv.AppendUint makes, in one form only: no sign, no capital, no zero in front.
func parseHex(s string) (n uint64, ok bool) {
	if s == "" || len(s) > 16 || s[0] == '0' && len(s) > 1 {
		return 0, false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case c >= '0' && c <= '9':
			n = n<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			n = n<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return n, true
}
