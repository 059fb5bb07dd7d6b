"""It imports pg_pong.py, and prints what that has changed."""
from changes import state, tell_changes

if __name__ == "__main__":
    before = state()
    import pg_pong
    tell_changes(before)
    print("imported", pg_pong.__name__)
