package estargz

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// parseDigest reads a SHA-256 digest as OCI writes it.
func parseDigest(dst *[32]byte, s []byte) error {
	if len(s) == 0 {
		return errors.New("has no chunk digest, so its content cannot be verified")
	}
	if len(s) == len(digestPrefix)+2*len(dst) && string(s[:len(digestPrefix)]) == digestPrefix {
		digits := (*[64]byte)(s[len(digestPrefix):])
		var bad uint64
		for i := 0; i < len(dst); i += 4 {
			v, b := unhex(binary.LittleEndian.Uint64(digits[2*i:]))
			binary.LittleEndian.PutUint32(dst[i:], v)
			bad |= b
		}
		if bad == 0 {
			return nil
		}
	}
	return fmt.Errorf("chunk digest %q is not a SHA-256 digest", s)
}

// unhex returns the four bytes that eight lower-case hexadecimal digits stand
// for, the first of each lowest. bad is not 0 if any of them is none.
func unhex(x uint64) (v uint32, bad uint64) {
	const each = 0x0101010101010101
	letters := x >> 6 & each // bit 6 tells letters from digits
	bad = x&(0xf0*each) ^ (0x30*each + 0x30*letters)
	values := x&(0x0f*each) + 9*letters
	// Letters are 10 to 15 then, digits 0 to 9.
	bad |= values&(0xf0*each) | ((values+6*each)&(0x10*each) ^ letters<<4)
	pairs := (values<<4 | values>>8) & 0x00ff00ff00ff00ff
	pairs = (pairs | pairs>>8) & 0x0000ffff0000ffff
	return uint32(pairs | pairs>>16), bad
}
