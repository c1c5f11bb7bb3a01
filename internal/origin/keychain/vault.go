package keychain

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// The vault's files, in its directory.
const (
	keyName    = "credentials.key"     // keySize random bytes
	sealedName = "credentials.enc"     // sealedHeader, then nonce, ciphertext and tag
	partName   = "credentials.enc.new" // becomes sealedName
)

const (
	keySize = 32 // AES-256
	// maxSealed bounds the file: some thousand times what a node needs.
	maxSealed = 64 << 20
	// sealedHeader begins the file, says its version, and is authenticated
	// with the rest: a file of another version cannot be passed off as ours.
	sealedHeader = "skimmer credentials 1\n"
)

// vault keeps one secret text in a file, encrypted with AES-256-GCM. Its
// methods are not safe for concurrent use.
type vault struct {
	dir    string
	aead   cipher.AEAD
	logger *slog.Logger
}

func openVault(dir string, logger *slog.Logger) (*vault, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory of credentials: %w", err)
	}
	key, err := readKey(filepath.Join(dir, keyName), logger)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("prepare key of credentials: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("prepare key of credentials: %w", err)
	}
	return &vault{dir: dir, aead: aead, logger: logger}, nil
}

// readKey returns the key in the file, which it makes if it is not there or
// cannot be a key.
func readKey(path string, logger *slog.Logger) ([]byte, error) {
	key, err := readLimited(path, keySize)
	switch {
	case err == nil && len(key) == keySize:
		return key, closeToOthers(path, logger)
	case errors.Is(err, fs.ErrNotExist):
	case err == nil, errors.Is(err, errTooLong), errors.Is(err, errNotFile):
		logger.Warn("key of credentials is damaged and replaced; credentials that were kept are lost", "file", path)
		if err := os.RemoveAll(path); err != nil {
			return nil, fmt.Errorf("remove damaged key of credentials: %w", err)
		}
	default:
		return nil, fmt.Errorf("read key of credentials: %w", err)
	}
	key = make([]byte, keySize)
	rand.Read(key) // never fails: crypto/rand
	if err := writeNew(path, key); err != nil {
		return nil, fmt.Errorf("write key of credentials: %w", err)
	}
	return key, nil
}

// closeToOthers takes the key away from whom a restored backup or a wide umask
// gave it to.
func closeToOthers(path string, logger *slog.Logger) error {
	info, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read mode of key of credentials: %w", err)
	}
	if info.Mode().Perm()&0o077 == 0 {
		return nil
	}
	logger.Warn("key of credentials could be read by others; it is made private", "file", path)
	if err := os.Chmod(path, 0o600); err != nil {
		return fmt.Errorf("make key of credentials private: %w", err)
	}
	return nil
}

// load returns the text, or nil where there is none that can be trusted.
func (v *vault) load() []byte {
	sealed, err := readLimited(filepath.Join(v.dir, sealedName), maxSealed)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		v.drop(err.Error())
		return nil
	}
	sealed, ours := bytes.CutPrefix(sealed, []byte(sealedHeader))
	if !ours {
		v.drop("it is not a file of ours, or of another version")
		return nil
	}
	plain, err := v.aead.Open(nil, nil, sealed, []byte(sealedHeader))
	if err != nil {
		v.drop("it is damaged, or sealed with another key")
		return nil
	}
	return plain
}

// drop removes the file of no use.
func (v *vault) drop(reason string) {
	path := filepath.Join(v.dir, sealedName)
	v.logger.Warn("file of credentials is dropped", "file", path, "reason", reason)
	if err := os.RemoveAll(path); err != nil {
		v.logger.Warn("file of credentials cannot be removed", "file", path, "error", err)
	}
}

// save replaces the text; a crash leaves the old or the new one.
func (v *vault) save(plain []byte) error {
	sealed := v.aead.Seal([]byte(sealedHeader), nil, plain, []byte(sealedHeader))
	if len(sealed) > maxSealed {
		return fmt.Errorf("save credentials: %d bytes, at most %d are allowed", len(sealed), maxSealed)
	}
	part := filepath.Join(v.dir, partName)
	if err := os.Remove(part); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove unfinished credentials: %w", err)
	}
	if err := writeNew(part, sealed); err != nil {
		return fmt.Errorf("write credentials: %w", err)
	}
	if err := os.Rename(part, filepath.Join(v.dir, sealedName)); err != nil {
		return fmt.Errorf("replace credentials: %w", err)
	}
	if err := syncDir(v.dir); err != nil {
		return fmt.Errorf("replace credentials: %w", err)
	}
	return nil
}

// writeNew makes a private file that did not exist, durably.
func writeNew(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// What readLimited refuses to read.
var (
	errTooLong = errors.New("file is too long")
	errNotFile = errors.New("not a regular file")
)

// readLimited returns a file's content, of at most limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	// A pipe that somebody put here would block the open, hence the look first.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errNotFile
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLong
	}
	return data, err
}
